#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

namespace precast {

/// Counters of one moment; precast_engine_stats explains each.
struct EngineStats {
  std::uint64_t steps = 0;
  std::uint64_t num_active_requests = 0;
  std::uint64_t num_queued_requests = 0;
  std::uint64_t num_completed_requests = 0;
  std::uint64_t num_paused_requests = 0;
  std::uint64_t num_preemptions = 0;
  std::uint64_t num_blocks = 0;
  std::uint64_t num_free_blocks = 0;
  std::uint64_t num_cached_blocks = 0;
  std::uint64_t tokens_per_block = 0;
  std::uint64_t prompt_tokens_computed = 0;
  std::uint64_t prompt_tokens_reused = 0;
  std::uint64_t output_tokens = 0;
  std::uint64_t allocated_blocks = 0;
  std::uint64_t reused_blocks = 0;
  std::uint64_t missed_blocks = 0;
  std::int64_t last_step_ns = 0;
  std::uint64_t last_step_num_tokens = 0;
  std::uint64_t last_step_num_sequences = 0;
};

/// One iteration; precast_engine_iteration_stats explains each.
struct IterationStats {
  EngineStats totals;  ///< at its end; totals.steps numbers the iteration
  std::int64_t timestamp_ns = 0;
  std::uint64_t num_new_active_requests = 0;
  std::int64_t new_active_requests_queue_latency_ns = 0;
  std::uint64_t num_context_requests = 0;     ///< with tokens of their prompt in this step
  std::uint64_t num_generation_requests = 0;  ///< the others
  std::uint64_t num_context_tokens = 0;
};

}  // namespace precast
