#include "runtime/native/src/kv_events.h"

#include <iterator>
#include <utility>

namespace precast {

KvEvent& KvEventBuffer::add(KvEvent::Kind kind) {
  if (events_.size() == capacity_) events_.pop_front();
  KvEvent& event = events_.emplace_back();
  event.id = next_id_++;
  event.kind = kind;
  return event;
}

void KvEventBuffer::created(std::size_t num_blocks) {
  if (enabled()) add(KvEvent::Kind::created).num_blocks = num_blocks;
}

void KvEventBuffer::stored(const std::optional<BlockKey>& parent, StoredBlock block) {
  if (!enabled()) return;
  const bool continues = parent && !events_.empty() && events_.back().kind == KvEvent::Kind::stored &&
                         events_.back().stored.back().key == *parent;
  if (!continues) add(KvEvent::Kind::stored).parent = parent;
  events_.back().stored.push_back(std::move(block));
}

void KvEventBuffer::removed(const BlockKey& key) {
  if (!enabled()) return;
  const bool continues = !events_.empty() && events_.back().kind == KvEvent::Kind::removed;
  if (!continues) add(KvEvent::Kind::removed);
  events_.back().removed.push_back(key);
}

void KvEventBuffer::updated(const BlockKey& key, std::uint32_t priority) {
  if (!enabled()) return;
  KvEvent& event = add(KvEvent::Kind::updated);
  event.updated = key;
  event.priority = priority;
}

std::vector<KvEvent> KvEventBuffer::take() {
  std::vector<KvEvent> taken(std::make_move_iterator(events_.begin()), std::make_move_iterator(events_.end()));
  events_.clear();
  return taken;
}

}  // namespace precast
