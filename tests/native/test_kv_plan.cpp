#include <algorithm>
#include <cstdint>
#include <set>

#include "runtime/native/src/error.h"
#include "runtime/native/src/kv_plan.h"
#include "tests/native/check.h"

using precast::blocks_of_sequence;
using precast::KvPlanInput;
using precast::plan_kv_pool;

namespace {

constexpr std::int64_t no_window[] = {0};
constexpr std::int64_t full_and_windowed[] = {0, 20};

constexpr KvPlanInput base{.bytes_per_block = 100,
                           .tokens_per_block = 16,
                           .windows = no_window,
                           .max_step_tokens = 32,
                           .engine_max_seq_len = 100,
                           .wanted_max_seq_len = 0,
                           .max_batch_size = 4,
                           .kv_cache_bytes = 0,
                           .available_bytes = 1'000'000};

}  // namespace

TEST("the KV pool is no larger than max_batch_size sequences can fill") {
  CHECK_EQ(plan_kv_pool(base).num_blocks, 4 * 7);
  CHECK_EQ(plan_kv_pool(base).max_seq_len, 100);
}

TEST("the KV pool takes half of the memory that is available") {
  KvPlanInput input = base;
  input.available_bytes = 2000;
  CHECK_EQ(plan_kv_pool(input).num_blocks, 10);
}

TEST("a max_seq_len left to the engine is lowered to what the pool holds") {
  KvPlanInput input = base;
  input.kv_cache_bytes = 399;
  CHECK_EQ(plan_kv_pool(input).num_blocks, 3);
  CHECK_EQ(plan_kv_pool(input).max_seq_len, 48);
}

TEST("a max_seq_len that was asked for is kept or refused") {
  KvPlanInput input = base;
  input.wanted_max_seq_len = 40;
  input.kv_cache_bytes = 300;
  CHECK_EQ(plan_kv_pool(input).max_seq_len, 40);
  input.kv_cache_bytes = 299;
  CHECK_THROWS(plan_kv_pool(input));
  input.kv_cache_bytes = 0;
  input.wanted_max_seq_len = 1000;  // more than the engine was built for: the engine's own
  CHECK_EQ(plan_kv_pool(input).max_seq_len, 100);
}

TEST("a KV pool without a block is refused") {
  KvPlanInput input = base;
  input.kv_cache_bytes = 99;
  CHECK_THROWS(plan_kv_pool(input));
}

TEST("blocks of a sequence in a window: what one step can see, at the worst place") {
  CHECK_EQ(blocks_of_sequence(100, 0, 8, 16), 7U);
  CHECK_EQ(blocks_of_sequence(20, 64, 8, 16), 2U);  // the whole sequence
  for (const std::uint64_t tokens_per_block : {1U, 4U, 16U}) {
    for (const std::int64_t window : {1, 2, 15, 16, 17, 33}) {
      for (const std::uint64_t step : {1U, 3U, 16U, 17U}) {
        std::uint64_t most = 0;
        for (std::uint64_t start = 0; start < 64; ++start) {
          std::set<std::uint64_t> blocks;
          const auto w = static_cast<std::uint64_t>(window);
          for (std::uint64_t p = start < w ? 0 : start - w + 1; p < start + step; ++p) blocks.insert(p / tokens_per_block);
          most = std::max<std::uint64_t>(most, blocks.size());
        }
        CHECK_EQ(blocks_of_sequence(10'000, window, step, tokens_per_block), most);
      }
    }
  }
}

TEST("the KV pool counts the blocks of every group, of a window only what it sees") {
  KvPlanInput input = base;
  input.windows = full_and_windowed;
  CHECK_EQ(plan_kv_pool(input).num_blocks, 4 * (7 + 5));  // 19 + 32 tokens touch at most 5 blocks of 16
  input.kv_cache_bytes = 800;
  CHECK_EQ(plan_kv_pool(input).num_blocks, 8);
  CHECK_EQ(plan_kv_pool(input).max_seq_len, 64);  // 4 + 4; one token more is 5 + 5
  input.kv_cache_bytes = 1100;
  CHECK_EQ(plan_kv_pool(input).max_seq_len, 96);  // 6 + 5
  input.kv_cache_bytes = 199;
  CHECK_THROWS(plan_kv_pool(input));  // one token needs a block of each
  input.wanted_max_seq_len = 96;
  input.kv_cache_bytes = 1100;
  CHECK_EQ(plan_kv_pool(input).max_seq_len, 96);
  input.kv_cache_bytes = 1099;
  CHECK_THROWS(plan_kv_pool(input));
}

TEST("a pool that the caller has sized may hold more than what runs at once") {
  KvPlanInput input = base;
  input.kv_cache_bytes = 1000 * input.bytes_per_block;
  CHECK_EQ(plan_kv_pool(input).num_blocks, 1000);
}

TEST("a model without attention needs no memory for its pool") {
  KvPlanInput input = base;
  input.bytes_per_block = 0;
  input.windows = {};
  input.kv_cache_bytes = 1;
  CHECK_EQ(plan_kv_pool(input).num_blocks, 28);
}
