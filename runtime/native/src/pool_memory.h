#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/native/src/engine_kv.h"

namespace precast {

/// The memory of a rank's KV pools. Reserved at once and zero; it is occupied where it is first touched.
class PoolMemory {
 public:
  /// One pool, [num_blocks, block_bytes], at a multiple of 2 MiB. Pools of different KV groups may be the same memory.
  struct Pool {
    std::string name;    ///< of the graph input
    std::string layout;  ///< e.g. "kv16.bf16/1"
    std::byte* data = nullptr;
    std::int64_t num_blocks = 0;
    std::int64_t block_bytes = 0;

    std::size_t size_bytes() const noexcept { return static_cast<std::size_t>(num_blocks * block_bytes); }
  };

  /// The j-th caches of all groups get the same memory; they have the same block_bytes, which reading a manifest checks.
  /// Throws Error: invalid_argument for num_blocks < 1, resource_exhausted where there is no address space for it.
  PoolMemory(std::span<const KvCacheSpec> specs, std::int32_t num_blocks);
  ~PoolMemory();
  PoolMemory(const PoolMemory&) = delete;
  PoolMemory& operator=(const PoolMemory&) = delete;

  std::span<const Pool> pools() const noexcept { return pools_; }

  /// Null where no pool has this name.
  const Pool* find(std::string_view name) const noexcept;

 private:
  std::byte* data_ = nullptr;
  std::size_t size_bytes_ = 0;
  std::vector<Pool> pools_;
};

}  // namespace precast
