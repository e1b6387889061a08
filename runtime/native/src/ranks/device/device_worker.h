#pragma once

#include "runtime/native/src/ranks/local/local_worker.h"
#include "runtime/native/src/session_factory.h"

namespace precast {

/// Runs a rank in this process, which a DeviceSession has started: makes the session, computes the steps that the engine
/// publishes, and returns when that stops. Returns the exit status. Ends the process when the parent ends.
int run_device_worker(const WorkerArguments& arguments, const SessionFactory& make_session);

}  // namespace precast
