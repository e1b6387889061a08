#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

#include "runtime/native/src/block_key.h"

namespace precast {

/// A block that can be reused from now on.
struct StoredBlock {
  BlockKey key;
  std::vector<std::int32_t> token_ids;  ///< [tokens_per_block]
  std::uint32_t priority = 0;
};

/// What happened to cached KV blocks; precast_engine_kv_events explains the kinds.
struct KvEvent {
  enum class Kind { created, stored, removed, updated };

  std::uint64_t id = 0;  ///< ascending by 1
  Kind kind = Kind::created;
  std::uint64_t num_blocks = 0;        ///< of created
  std::optional<BlockKey> parent;      ///< of stored; nothing: the first block of a sequence
  std::vector<StoredBlock> stored;     ///< of stored: a chain, each block the parent of the next
  std::vector<BlockKey> removed;       ///< of removed
  BlockKey updated;                    ///< of updated
  std::uint32_t priority = 0;          ///< of updated
};

/// The latest `capacity` events. With capacity 0 nothing is recorded.
class KvEventBuffer {
 public:
  explicit KvEventBuffer(std::size_t capacity) : capacity_(capacity) {}

  bool enabled() const noexcept { return capacity_ > 0; }
  void created(std::size_t num_blocks);
  /// Joins the event before it where that stored this block's parent last.
  void stored(const std::optional<BlockKey>& parent, StoredBlock block);
  void removed(const BlockKey& key);
  void updated(const BlockKey& key, std::uint32_t priority);

  /// All events since the last call, oldest first.
  std::vector<KvEvent> take();

 private:
  KvEvent& add(KvEvent::Kind kind);

  std::size_t capacity_;
  std::uint64_t next_id_ = 0;
  std::deque<KvEvent> events_;
};

}  // namespace precast
