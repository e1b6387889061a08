#pragma once

#include "precast.h"
#include "runtime/native/src/request.h"

namespace precast {

/// For the caller to give back to precast_event_clear.
precast_event_t to_event(const Event& event);

}  // namespace precast
