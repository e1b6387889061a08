#include "runtime/native/src/pool_memory.h"

#include <algorithm>
#include <limits>

#include "tests/native/check.h"
#include "tests/native/engine_files.h"

namespace precast::test {

TEST("KV pools are zero, apart, and start at multiples of 2 MiB") {
  const std::vector<KvCacheSpec> specs = {{"kv.0", "kv16.f32/1", 4096, 0}, {"kv.1", "kv16.f32/1", 64, 0}};
  const PoolMemory memory(specs, 1000);
  CHECK_EQ(memory.pools().size(), 2U);
  for (const PoolMemory::Pool& pool : memory.pools()) {
    CHECK_EQ(reinterpret_cast<std::uintptr_t>(pool.data) % (std::uintptr_t{2} << 20), 0U);
    for (std::size_t i = 0; i < pool.size_bytes(); ++i) CHECK(pool.data[i] == std::byte{0});
    std::fill(pool.data, pool.data + pool.size_bytes(), std::byte{1});  // the last byte too is there
  }
  CHECK(memory.pools()[0].data + memory.pools()[0].size_bytes() <= memory.pools()[1].data);
  CHECK_EQ(memory.pools()[0].size_bytes(), 4096000U);
  CHECK_EQ(memory.find("kv.1"), &memory.pools()[1]);
  CHECK(memory.find("kv.2") == nullptr);
}

TEST("the j-th KV pools of all groups are one memory") {
  const std::vector<KvCacheSpec> specs = {{"full.0", "kv16.f32/1", 4096, 0},
                                          {"full.1", "kv16.f32/1", 64, 0},
                                          {"windowed.0", "kv16.f32/1", 4096, 1},
                                          {"windowed.1", "kv16.f32/1", 64, 1},
                                          {"windowed.2", "kv16.f32/1", 128, 1}};
  const PoolMemory memory(specs, 1000);
  const auto pools = memory.pools();
  CHECK_EQ(pools.size(), 5U);
  CHECK_EQ(pools[2].data, pools[0].data);
  CHECK_EQ(pools[3].data, pools[1].data);
  CHECK(pools[0].data + pools[0].size_bytes() <= pools[1].data);
  CHECK(pools[1].data + pools[1].size_bytes() <= pools[4].data);
  std::fill(pools[4].data, pools[4].data + pools[4].size_bytes(), std::byte{1});  // the last byte too is there
  CHECK_EQ(memory.find("windowed.1"), &pools[3]);
}

TEST("a model without attention has no pools") {
  const PoolMemory memory({}, 1);
  CHECK(memory.pools().empty());
}

TEST("KV pools that cannot be are refused") {
  const std::vector<KvCacheSpec> specs = {{"kv.0", "kv16.f32/1", std::numeric_limits<std::int32_t>::max(), 0}};
  const auto code = [&](std::int32_t num_blocks) { return refusal_code([&] { PoolMemory memory(specs, num_blocks); }); };
  CHECK_EQ(code(0), static_cast<int>(ErrorCode::invalid_argument));
  CHECK_EQ(code(std::numeric_limits<std::int32_t>::max()), static_cast<int>(ErrorCode::resource_exhausted));
}

}  // namespace precast::test
