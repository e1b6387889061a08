#include "runtime/native/src/pool_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>

#include "runtime/native/src/concat.h"
#include "runtime/native/src/error.h"

namespace precast {
namespace {

constexpr std::size_t alignment = std::size_t{2} << 20;  // a huge page
constexpr std::size_t max_bytes = std::size_t{1} << 47;  // the address space of a process

std::size_t round_up(std::size_t bytes) { return (bytes + alignment - 1) / alignment * alignment; }

[[noreturn]] void fail(std::string_view reason, std::size_t num_pools, std::int32_t num_blocks) {
  throw Error(ErrorCode::resource_exhausted,
              concat("cannot reserve ", num_pools, " KV pools of ", num_blocks, " blocks: ", reason,
                     "; give a smaller kv_cache_bytes"));
}

std::size_t pool_bytes(const KvCacheSpec& spec, std::int32_t num_blocks) {
  std::size_t bytes = 0;
  const bool overflow = __builtin_mul_overflow(static_cast<std::size_t>(spec.block_bytes), num_blocks, &bytes);
  return overflow || bytes > max_bytes ? max_bytes : round_up(bytes);
}

}  // namespace

PoolMemory::PoolMemory(std::span<const KvCacheSpec> specs, std::int32_t num_blocks) {
  if (num_blocks < 1) throw Error(ErrorCode::invalid_argument, concat("num_blocks is ", num_blocks, "; give at least 1"));
  if (specs.empty()) return;
  const std::vector<std::size_t> memories = kv_memory_indices(specs);
  std::vector<std::size_t> offsets;  // of each memory
  for (std::size_t i = 0; i < specs.size(); ++i) {
    if (memories[i] < offsets.size()) continue;
    offsets.push_back(size_bytes_);
    size_bytes_ += pool_bytes(specs[i], num_blocks);
    if (size_bytes_ >= max_bytes) fail("more than the address space", specs.size(), num_blocks);
  }
  size_bytes_ += alignment;  // room to start the first pool at a multiple of it
  void* const reserved =
      ::mmap(nullptr, size_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved == MAP_FAILED) fail(system_message(errno), specs.size(), num_blocks);
  ::madvise(reserved, size_bytes_, MADV_HUGEPAGE);  // a hint; ordinary pages serve where there are none
  data_ = static_cast<std::byte*>(reserved);

  const auto address = reinterpret_cast<std::uintptr_t>(data_);
  std::byte* const first = data_ + (round_up(address) - address);
  for (std::size_t i = 0; i < specs.size(); ++i) {
    pools_.push_back({specs[i].name, specs[i].layout, first + offsets[memories[i]], num_blocks, specs[i].block_bytes});
  }
}

PoolMemory::~PoolMemory() {
  if (data_ != nullptr) ::munmap(data_, size_bytes_);
}

const PoolMemory::Pool* PoolMemory::find(std::string_view name) const noexcept {
  const auto found = std::find_if(pools_.begin(), pools_.end(), [&](const Pool& pool) { return pool.name == name; });
  return found == pools_.end() ? nullptr : &*found;
}

}  // namespace precast
