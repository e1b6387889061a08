#include "runtime/native/src/kv_events.h"

#include <cstdint>
#include <optional>
#include <vector>

#include "tests/native/check.h"

using namespace precast;

namespace {

BlockKey key(std::uint64_t number) { return {.high = 7, .low = number}; }

StoredBlock block(std::uint64_t number) { return {key(number), {1, 2}, 35}; }

}  // namespace

TEST("KV events: a chain of stored blocks is one event, and whatever breaks it begins another") {
  KvEventBuffer events(100);
  events.created(8);
  events.stored(std::nullopt, block(1));
  events.stored(key(1), block(2));
  events.stored(key(2), block(3));
  events.stored(key(2), block(4));  // a branch
  events.stored(std::nullopt, block(5));
  events.removed(key(3));
  events.removed(key(2));
  events.updated(key(1), 80);
  events.stored(key(1), block(6));
  const std::vector<KvEvent> taken = events.take();
  CHECK_EQ(taken.size(), 7U);
  for (std::size_t i = 0; i < taken.size(); ++i) CHECK_EQ(taken[i].id, i);
  CHECK(taken[0].kind == KvEvent::Kind::created && taken[0].num_blocks == 8);
  CHECK(!taken[1].parent.has_value());
  CHECK_EQ(taken[1].stored.size(), 3U);
  CHECK(taken[2].parent == key(2) && taken[2].stored.at(0).key == key(4));
  CHECK(!taken[3].parent.has_value() && taken[3].stored.at(0).key == key(5));
  CHECK(taken[4].removed == std::vector<BlockKey>({key(3), key(2)}));
  CHECK(taken[5].updated == key(1) && taken[5].priority == 80);
  CHECK(taken[6].parent == key(1));
}

TEST("KV events: what was taken is not added to") {
  KvEventBuffer events(100);
  events.stored(std::nullopt, block(1));
  CHECK_EQ(events.take().size(), 1U);
  CHECK(events.take().empty());
  events.stored(key(1), block(2));
  const std::vector<KvEvent> taken = events.take();
  CHECK_EQ(taken.size(), 1U);
  CHECK(taken[0].id == 1 && taken[0].parent == key(1));
}

TEST("KV events: the oldest are dropped, and a gap in the ids shows it") {
  KvEventBuffer events(2);
  for (std::uint64_t number = 1; number <= 5; ++number) events.updated(key(number), 1);
  std::vector<KvEvent> taken = events.take();
  CHECK_EQ(taken.size(), 2U);
  CHECK(taken[0].id == 3 && taken[1].id == 4);
  events.updated(key(6), 1);
  CHECK_EQ(events.take().at(0).id, 5U);
}

TEST("KV events: with no room nothing is recorded") {
  KvEventBuffer events(0);
  CHECK(!events.enabled());
  events.created(8);
  events.stored(std::nullopt, block(1));
  events.removed(key(1));
  events.updated(key(1), 1);
  CHECK(events.take().empty());
}
