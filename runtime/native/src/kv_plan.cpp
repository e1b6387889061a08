#include "runtime/native/src/kv_plan.h"

#include <algorithm>
#include <limits>

#include "runtime/native/src/concat.h"
#include "runtime/native/src/error.h"

namespace precast {
namespace {

// Block tables are int32, and a step's tokens are counted in int32.
constexpr std::uint64_t max_blocks = std::numeric_limits<std::int32_t>::max() / 2;

/// Over all KV groups. A model without attention is planned as if it had one.
std::uint64_t blocks_in_all_groups(const KvPlanInput& input, std::uint64_t num_tokens) noexcept {
  constexpr std::int64_t no_window[] = {0};
  std::uint64_t blocks = 0;
  for (const std::int64_t window : input.windows.empty() ? std::span(no_window) : input.windows) {
    blocks += blocks_of_sequence(num_tokens, window, input.max_step_tokens, input.tokens_per_block);
  }
  return blocks;
}

/// The longest sequence, of at most `max_seq_len` tokens, that `num_blocks` blocks hold.
std::uint64_t longest_sequence(const KvPlanInput& input, std::uint64_t max_seq_len, std::uint64_t num_blocks) noexcept {
  std::uint64_t fits = 0;
  while (fits < max_seq_len) {
    const std::uint64_t middle = fits + (max_seq_len - fits + 1) / 2;
    if (blocks_in_all_groups(input, middle) <= num_blocks) {
      fits = middle;
    } else {
      max_seq_len = middle - 1;
    }
  }
  return fits;
}

}  // namespace

std::uint64_t blocks_of_sequence(std::uint64_t num_tokens, std::int64_t window, std::uint64_t max_step_tokens,
                                 std::uint64_t tokens_per_block) noexcept {
  const std::uint64_t all = (num_tokens + tokens_per_block - 1) / tokens_per_block;
  if (window == 0) return all;
  // A step's first row sees window - 1 tokens before it; they may start at the last token of a block.
  const std::uint64_t visible = static_cast<std::uint64_t>(window) - 1 + max_step_tokens;
  return std::min(all, (visible + tokens_per_block - 2) / tokens_per_block + 1);
}

KvPlan plan_kv_pool(const KvPlanInput& input) {
  const bool asked = input.wanted_max_seq_len != 0 && input.wanted_max_seq_len <= input.engine_max_seq_len;
  std::uint64_t max_seq_len = asked ? input.wanted_max_seq_len : input.engine_max_seq_len;
  const std::uint64_t blocks_per_sequence = blocks_in_all_groups(input, max_seq_len);
  // Who asks for more than what can run at once wants it for prefixes to be kept in.
  const bool sized_by_caller = input.kv_cache_bytes != 0 && input.bytes_per_block != 0;
  const std::uint64_t useful =
      sized_by_caller ? max_blocks : std::min(max_blocks, input.max_batch_size * blocks_per_sequence);
  const std::uint64_t budget = input.kv_cache_bytes != 0 ? input.kv_cache_bytes : input.available_bytes / 2;
  const std::uint64_t affordable = input.bytes_per_block == 0 ? max_blocks : budget / input.bytes_per_block;
  const std::uint64_t num_blocks = std::min(affordable, useful);
  const std::uint64_t needed = asked ? blocks_per_sequence : blocks_in_all_groups(input, 1);
  if (num_blocks < needed) {
    throw Error(ErrorCode::resource_exhausted,
                concat("a KV cache of ", budget, " bytes holds ", num_blocks, " blocks of ", input.tokens_per_block,
                       " tokens, and a sequence of ", asked ? max_seq_len : 1, " needs ", needed, " (",
                       input.bytes_per_block, " bytes a block): give a larger kv_cache_bytes",
                       asked ? " or a smaller max_seq_len" : ""));
  }
  max_seq_len = longest_sequence(input, max_seq_len, num_blocks);
  return {static_cast<std::int32_t>(num_blocks), static_cast<std::int32_t>(max_seq_len)};
}

}  // namespace precast
