#pragma once

#include <cstdint>
#include <span>

namespace precast {

/// Most blocks that a sequence of `num_tokens` tokens holds at once in one KV group, whose window is `window` (0: none), if
/// it advances by at most `max_step_tokens` tokens a step and gives blocks below the window back before each step.
std::uint64_t blocks_of_sequence(std::uint64_t num_tokens, std::int64_t window, std::uint64_t max_step_tokens,
                                 std::uint64_t tokens_per_block) noexcept;

/// What decides the size of the KV pool.
struct KvPlanInput {
  std::uint64_t bytes_per_block = 0;      ///< of a page, see kv_page_bytes(); 0 for a model without attention
  std::uint64_t tokens_per_block = 0;
  std::span<const std::int64_t> windows;  ///< of the KV groups, 0: none. Blocks of a sequence are counted over all of them
  std::uint64_t max_step_tokens = 0;      ///< that a sequence may advance in one step
  std::uint64_t engine_max_seq_len = 0;   ///< what the engine was built for
  std::uint64_t wanted_max_seq_len = 0;   ///< of the options; 0: the engine's
  std::uint64_t max_batch_size = 0;
  std::uint64_t kv_cache_bytes = 0;       ///< of the options; 0: from available_bytes
  std::uint64_t available_bytes = 0;      ///< memory of this moment, see available_memory_bytes()
};

/// How many blocks the pool gets, and the longest sequence it allows: at least one sequence of max_seq_len tokens fits.
struct KvPlan {
  std::int32_t num_blocks = 0;
  std::int32_t max_seq_len = 0;
};

/// Without kv_cache_bytes the pool takes half of the available memory, but no more than max_batch_size sequences of
/// max_seq_len tokens can fill. Where that does not hold one whole sequence, a max_seq_len that was left to the engine is
/// lowered, and one that was asked for is refused: Error(resource_exhausted), as for a pool without a single block.
KvPlan plan_kv_pool(const KvPlanInput& input);

}  // namespace precast
