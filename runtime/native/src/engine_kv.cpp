#include "runtime/native/src/engine_kv.h"

#include <algorithm>
#include <limits>
#include <set>

#include "runtime/native/src/concat.h"
#include "runtime/native/src/error.h"

namespace precast {
namespace {

constexpr std::int64_t max_int32 = std::numeric_limits<std::int32_t>::max();

void check_new(std::set<std::string>& names, const JsonCursor& value, const std::string& name) {
  if (!names.insert(name).second) value.fail(concat("differ from the names before it, got ", quote(name)));
}

/// Caches that share a memory are of one layout and size.
void check_shared_memories(const std::vector<JsonCursor>& values, std::span<const KvCacheSpec> caches) {
  const std::vector<std::size_t> memories = kv_memory_indices(caches);
  std::vector<std::size_t> first_of_memory;
  for (std::size_t i = 0; i < caches.size(); ++i) {
    if (memories[i] == first_of_memory.size()) first_of_memory.push_back(i);
    const std::size_t first = first_of_memory[memories[i]];
    const KvCacheSpec& wanted = caches[first];
    if (caches[i].layout == wanted.layout && caches[i].block_bytes == wanted.block_bytes) continue;
    values[i].fail(concat("have the layout and block_bytes of kv_caches[", first, "], whose memory it shares, ",
                          wanted.layout, " and ", wanted.block_bytes, ", got ", caches[i].layout, " and ",
                          caches[i].block_bytes));
  }
}

}  // namespace

std::vector<KvGroupSpec> read_kv_groups(const JsonCursor& rank) {
  std::vector<KvGroupSpec> groups;
  std::set<std::string> names;
  std::int64_t before = 0;
  for (const JsonCursor& value : rank.at("kv_groups").elements()) {
    KvGroupSpec group{.block_tables = value.at("block_tables").printable_name(), .window = std::nullopt};
    check_new(names, value.at("block_tables"), group.block_tables);
    const JsonCursor window = value.at("window");
    if (!window.is_null()) {
      group.window = window.integer(1, max_int32);
      if (*group.window <= before) window.fail(concat("be greater than ", before, " before it, got ", *group.window));
      before = *group.window;
    } else if (!groups.empty()) {
      window.fail("not be null behind the first group");
    }
    groups.push_back(std::move(group));
  }
  return groups;
}

std::vector<KvCacheSpec> read_kv_caches(const JsonCursor& rank, std::span<const KvGroupSpec> groups) {
  const std::vector<JsonCursor> values = rank.at("kv_caches").elements();
  std::vector<KvCacheSpec> caches;
  std::set<std::string> names;
  for (const KvGroupSpec& group : groups) names.insert(group.block_tables);
  for (const JsonCursor& value : values) {
    KvCacheSpec cache{.name = value.at("name").printable_name(),
                      .layout = value.at("layout").printable_name(),
                      .block_bytes = value.at("block_bytes").integer(1, max_int32),
                      .group = static_cast<std::size_t>(value.at("group").integer(0, max_int32))};
    check_new(names, value.at("name"), cache.name);
    if (cache.group >= groups.size()) {
      value.at("group").fail(concat("be less than the ", groups.size(), " kv_groups, got ", cache.group));
    }
    caches.push_back(std::move(cache));
  }
  check_shared_memories(values, caches);
  return caches;
}

std::vector<std::int64_t> kv_group_windows(std::span<const KvGroupSpec> groups) {
  std::vector<std::int64_t> windows;
  for (const KvGroupSpec& group : groups) windows.push_back(group.window.value_or(0));
  return windows;
}

std::vector<std::size_t> kv_memory_indices(std::span<const KvCacheSpec> caches) {
  std::vector<std::size_t> indices;
  std::vector<std::size_t> num_seen;  // caches of each group so far
  for (const KvCacheSpec& cache : caches) {
    if (cache.group >= num_seen.size()) num_seen.resize(cache.group + 1, 0);
    indices.push_back(num_seen[cache.group]++);
  }
  return indices;
}

std::uint64_t kv_page_bytes(std::span<const KvCacheSpec> caches) {
  const std::vector<std::size_t> memories = kv_memory_indices(caches);
  std::uint64_t bytes = 0;
  std::size_t num_memories = 0;
  for (std::size_t i = 0; i < caches.size(); ++i) {
    if (memories[i] < num_memories) continue;
    ++num_memories;
    bytes += static_cast<std::uint64_t>(caches[i].block_bytes);
  }
  return bytes;
}

}  // namespace precast
