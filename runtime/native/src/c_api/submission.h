#pragma once

#include "precast.h"
#include "runtime/native/src/engine.h"

namespace precast {

precast_sampling_t default_sampling();
precast_request_t default_request();

/// A copy of everything that the caller's request points to. Throws Error(invalid_argument) for a struct that was not
/// initialised, a NULL with a count, and a number that is too large; the rest is the engine's to check.
Submission to_submission(const precast_request_t* request);

}  // namespace precast
