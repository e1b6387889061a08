#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "plugins/collectives/cpu/message_passing.h"

namespace precast {

/// What a rank knows of where it runs.
struct RankPlace {
  std::size_t num_local_ranks = 1;  ///< on this host
};

/// The life of a rank other than 0: loads the engines that rank 0 names, one after another, computes its part of their steps,
/// and returns when rank 0 says that no more follow. What goes wrong with an engine is told to rank 0; MessageError is thrown
/// where that is impossible.
void serve_rank(MessagePassing& messages, const RankPlace& place);

/// Threads for one of the `num_local_ranks` ranks of a host that have `num_threads` together (0: its processors). A launcher
/// that has bound this process to some of them meant them for it alone.
std::uint32_t threads_of_rank(std::uint32_t num_threads, std::size_t num_local_ranks);

}  // namespace precast
