#pragma once

#include <memory>
#include <string>

#include "runtime/native/src/ort_session.h"
#include "runtime/native/src/ranks/rank_link.h"

namespace precast {

/// Loads a worker's part of an engine, which may take long from a slow disk: meanwhile its communicator shows that it lives.
/// Throws Error.
std::unique_ptr<OrtSession> load_rank(const std::string& engine_dir, const OrtSessionOptions& options);

/// What a worker says when it has loaded.
std::string describe_loaded(const OrtSession& session);

/// Computes the steps that rank 0 publishes, until none follows. What goes wrong fails all ranks: they would wait in vain for
/// what this one has not computed.
void run_steps(OrtSession& session, std::size_t rank, WorkerLink& link);

}  // namespace precast
