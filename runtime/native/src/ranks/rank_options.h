#pragma once

#include <chrono>
#include <string>

#include "runtime/native/src/log.h"
#include "runtime/native/src/ort_session.h"
#include "runtime/native/src/ranks/step_codec.h"

namespace precast {

/// How to run an engine of several ranks.
struct RankOptions {
  OrtSessionOptions rank{};   ///< of every rank; num_threads are of all ranks of a host together
  std::string worker_path{};  ///< "": PRECAST_WORKER, else beside the library
  std::chrono::milliseconds rank_timeout{60'000};
  StepLimits limits{};
  Log log{};  ///< of what the other ranks say and write
};

/// Processors that this process may run on.
std::uint32_t num_processors();

/// How often a rank looks for another one before it lets others run: with a processor for each thread of the
/// `num_ranks` ranks of a host, as usual; without, not at all, since that only keeps the other rank from running.
unsigned spins_of(std::size_t num_ranks, std::uint32_t threads_of_each);

/// Of the engine and this precast; ranks that differ in it are refused.
std::uint64_t build_id(const std::string& engine_dir);

}  // namespace precast
