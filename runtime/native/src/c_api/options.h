#pragma once

#include "precast.h"
#include "runtime/native/src/engine_loader.h"

namespace precast {

/// The caller's options, which may be NULL, with every 0 that stands for a default replaced by it.
EngineOptions to_options(const precast_engine_options_t* from);

}  // namespace precast
