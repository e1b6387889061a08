#include "runtime/native/src/error.h"
#include "runtime/native/src/kv_plan.h"
#include "tests/native/check.h"

using precast::KvPlanInput;
using precast::plan_kv_pool;

namespace {

constexpr KvPlanInput base{.bytes_per_block = 100,
                           .tokens_per_block = 16,
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

TEST("a model without attention needs no memory for its pool") {
  KvPlanInput input = base;
  input.bytes_per_block = 0;
  input.kv_cache_bytes = 1;
  CHECK_EQ(plan_kv_pool(input).num_blocks, 28);
}
