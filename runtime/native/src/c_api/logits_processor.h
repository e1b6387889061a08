#pragma once

#include <memory>

#include "precast.h"
#include "runtime/native/src/sampling/logits_processor.h"

namespace precast {

/// The caller's functions as a LogitsProcessor. Throws Error(invalid_argument) where process is NULL or the struct was not
/// initialised.
std::shared_ptr<LogitsProcessor> make_logits_processor(const precast_logits_processor_t* table);

}  // namespace precast
