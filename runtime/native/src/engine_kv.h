// The KV caches of a rank and the groups they form, as engine.json describes them. docs/engine_format.md is the
// authority; checkpoints/engine_kv.py says the same in Python.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "runtime/native/src/json_cursor.h"

namespace precast {

/// Layers whose attention sees equally far back: they share a block table.
/// All ranks have the same groups, also those of which they have no layer.
struct KvGroupSpec {
  std::string block_tables;            ///< of the graph input, int32 [S, B]
  std::optional<std::int64_t> window;  ///< positions that a row sees, its own included; nothing: all

  bool operator==(const KvGroupSpec&) const = default;
};

/// One KV pool: a graph input, uint8 [num_blocks, block_bytes].
struct KvCacheSpec {
  std::string name;    ///< of the graph input
  std::string layout;  ///< e.g. "kv16.bf16/1"
  std::int64_t block_bytes = 0;
  std::size_t group = 0;  ///< index into RankFiles::kv_groups
};

/// Reads and checks `kv_groups` and `kv_caches` of one rank. Throws Error(corrupt_engine).
std::vector<KvGroupSpec> read_kv_groups(const JsonCursor& rank);
std::vector<KvCacheSpec> read_kv_caches(const JsonCursor& rank, std::span<const KvGroupSpec> groups);

/// The window of each group, 0 where there is none.
std::vector<std::int64_t> kv_group_windows(std::span<const KvGroupSpec> groups);

/// Which memory is the pool of each cache: memory j serves the j-th cache of every group. One block id has one block in
/// every memory, its page, and belongs to one group at a time.
std::vector<std::size_t> kv_memory_indices(std::span<const KvCacheSpec> caches);

/// Bytes of a page.
std::uint64_t kv_page_bytes(std::span<const KvCacheSpec> caches);

}  // namespace precast
