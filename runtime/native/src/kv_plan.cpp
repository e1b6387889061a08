#include "runtime/native/src/kv_plan.h"

#include <algorithm>
#include <limits>

#include "runtime/native/src/concat.h"
#include "runtime/native/src/error.h"

namespace precast {
namespace {

// Block tables are int32, and a step's tokens are counted in int32.
constexpr std::uint64_t max_blocks = std::numeric_limits<std::int32_t>::max() / 2;

}  // namespace

KvPlan plan_kv_pool(const KvPlanInput& input) {
  const bool asked = input.wanted_max_seq_len != 0 && input.wanted_max_seq_len <= input.engine_max_seq_len;
  std::uint64_t max_seq_len = asked ? input.wanted_max_seq_len : input.engine_max_seq_len;
  const std::uint64_t blocks_per_sequence = (max_seq_len + input.tokens_per_block - 1) / input.tokens_per_block;
  const std::uint64_t useful = std::min(max_blocks, input.max_batch_size * blocks_per_sequence);
  const std::uint64_t budget = input.kv_cache_bytes != 0 ? input.kv_cache_bytes : input.available_bytes / 2;
  const std::uint64_t affordable = input.bytes_per_block == 0 ? max_blocks : budget / input.bytes_per_block;
  const std::uint64_t num_blocks = std::min(affordable, useful);
  if (num_blocks < (asked ? blocks_per_sequence : 1)) {
    throw Error(ErrorCode::resource_exhausted,
                concat("a KV cache of ", budget, " bytes holds ", num_blocks * input.tokens_per_block, " tokens, and ",
                       asked ? "max_seq_len" : "one block", " needs ", asked ? max_seq_len : input.tokens_per_block, " (",
                       input.bytes_per_block, " bytes a block of ", input.tokens_per_block,
                       " tokens): give a larger kv_cache_bytes", asked ? " or a smaller max_seq_len" : ""));
  }
  max_seq_len = std::min(max_seq_len, num_blocks * input.tokens_per_block);
  return {static_cast<std::int32_t>(num_blocks), static_cast<std::int32_t>(max_seq_len)};
}

}  // namespace precast
