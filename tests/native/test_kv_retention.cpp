// Which cached blocks go first: by priority, its duration, the last use, and the distance from the start.
#include <cstdint>
#include <limits>
#include <vector>

#include "tests/native/check.h"
#include "tests/native/kv_world.h"

using namespace precast;
using namespace precast::test;

namespace {

using Ids = KvWorld::Ids;
using Tables = std::vector<Ids>;

const KvCacheConfig six_blocks_of_two{.tokens_per_block = 2, .num_blocks = 6, .events_size = 100};

}  // namespace

TEST("retention: the sequence that ended first goes first, its end before its beginning") {
  KvWorld world(six_blocks_of_two);
  world.run({1, 1, 1, 1});  // blocks 0, 1
  world.run({2, 2, 2, 2});  // blocks 2, 3
  world.run({3, 3, 3, 3});  // blocks 4, 5
  auto next = world.open({9, 9, 9, 9, 9, 9});
  CHECK(world.compute(next));
  CHECK(next.kv.tables == Tables({{1, 0, 3}}));
  CHECK_EQ(world.num_found({1, 1, 1, 1, 1}), 0U);
  CHECK_EQ(world.num_found({2, 2, 2, 2, 2}), 1U);
  CHECK_EQ(world.num_found({3, 3, 3, 3, 3}), 2U);
}

TEST("retention: a use makes blocks recent again") {
  KvWorld world(six_blocks_of_two);
  world.run({1, 1, 1, 1});
  world.run({2, 2, 2, 2});
  world.run({1, 1, 1, 1, 5});  // takes both blocks of the first; its half block is blank again
  auto next = world.open({9, 9, 9, 9, 9, 9});
  CHECK(world.compute(next));  // the two blank ones and the end of the second
  CHECK_EQ(world.num_found({1, 1, 1, 1, 1}), 2U);
  CHECK_EQ(world.num_found({2, 2, 2, 2, 2}), 1U);
}

TEST("retention: lower priorities go first, and of ranges that overlap the later one counts") {
  KvWorld world(six_blocks_of_two);
  world.run({1, 1, 1, 1}, "", {{.priority = 10}});
  world.run({2, 2, 2, 2});
  world.run({3, 3, 3, 3}, "", {{.priority = 90}, {.start_token = 2, .end_token = 4, .priority = 0}});
  auto next = world.open(Ids(10, 9));
  CHECK(world.compute(next));
  CHECK(next.kv.tables == Tables({{5, 1, 0, 3, 2}}));
  CHECK_EQ(world.num_found({3, 3, 3, 3, 3}), 1U);
}

TEST("retention: what precedes a block is worth at least as much") {
  KvWorld world(six_blocks_of_two);
  world.run({1, 1, 1, 1}, "", {{.priority = 20}});
  world.cache.events().take();
  world.run({1, 1, 1, 1, 5, 5}, "", {{.start_token = 4, .priority = 60}});
  const std::vector<KvEvent> events = world.cache.events().take();
  CHECK_EQ(events.size(), 3U);  // stored, and both before it raised
  CHECK(events[1].kind == KvEvent::Kind::updated && events[1].priority == 60);
  CHECK(events[2].kind == KvEvent::Kind::updated && events[2].priority == 60);
  world.run({2, 2, 2, 2, 2, 2});
  auto next = world.open(Ids(6, 9));
  CHECK(world.compute(next));
  CHECK_EQ(world.num_found({1, 1, 1, 1, 5, 5, 5}), 3U);
}

TEST("retention: a priority lasts for its duration after the last use, then it is 35 again") {
  KvWorld world({.tokens_per_block = 2, .num_blocks = 3, .events_size = 100});
  world.cache.set_time(1000);
  world.run({1, 1}, "", {{.priority = 80, .duration_ns = 100}});  // block 0
  world.cache.set_time(1050);
  auto user = world.open({1, 1, 7});
  CHECK_EQ(world.reuse(user), 1U);
  world.cache.events().take();
  world.cache.set_time(1200);  // in use: its time does not run
  world.end(user);
  world.cache.set_time(1299);
  CHECK(world.cache.events().take().empty());
  world.cache.set_time(1300);
  const std::vector<KvEvent> events = world.cache.events().take();
  CHECK_EQ(events.size(), 1U);
  CHECK(events[0].kind == KvEvent::Kind::updated && events[0].priority == 35);
  world.check();
}

TEST("retention: a duration that ends after time itself is for ever") {
  KvWorld world({.tokens_per_block = 2, .num_blocks = 2});
  world.cache.set_time(1000);
  auto lasting = world.open({1, 1}, "", {{.priority = 80, .duration_ns = std::numeric_limits<std::int64_t>::max()}});
  auto other = world.open({2, 2}, "", {{.priority = 70}});
  CHECK(world.compute(lasting));
  CHECK(world.compute(other));
  world.end(lasting);
  world.end(other);
  world.cache.set_time(std::numeric_limits<std::int64_t>::max() - 1);
  auto next = world.open({9, 9});
  CHECK(world.compute(next));
  CHECK(next.kv.tables == Tables({{1}}));
}

TEST("retention: of equal priorities the one that lasts longer counts") {
  KvWorld world({.tokens_per_block = 2, .num_blocks = 2});
  world.run({1, 1}, "", {{.priority = 80, .duration_ns = 10}});
  auto again = world.open({1, 1}, "", {{.priority = 80}}, true);
  CHECK(world.compute(again));
  world.end(again);
  world.run({2, 2}, "", {{.priority = 50}});
  world.cache.set_time(1000);
  auto next = world.open({9, 9});
  CHECK(world.compute(next));
  CHECK_EQ(world.num_found({1, 1, 1}), 1U);
  CHECK_EQ(world.num_found({2, 2, 2}), 0U);
}

TEST("retention: a priority given to an idle block ends too") {
  KvWorld world({.tokens_per_block = 2, .num_blocks = 2});
  world.run({1, 1});
  auto again = world.open({1, 1}, "", {{.priority = 80, .duration_ns = 10}}, true);
  CHECK(world.compute(again));  // the tree keeps block 0, which nobody uses
  world.end(again);
  world.run({2, 2}, "", {{.priority = 50}});
  world.cache.set_time(1000);
  auto next = world.open({9, 9});
  CHECK(world.compute(next));
  CHECK_EQ(world.num_found({1, 1, 1}), 0U);
  CHECK_EQ(world.num_found({2, 2, 2}), 1U);
}

TEST("retention: a block that its window left behind ends no priority while other layers use its tokens") {
  KvWorld world({.tokens_per_block = 2, .num_blocks = 12, .windows = {0, 1}, .events_size = 100});
  auto sequence = world.open({1, 1, 2, 2, 3}, "", {{.priority = 80, .duration_ns = 10}});
  CHECK(world.compute(sequence, 4));
  CHECK(world.compute(sequence, 5));  // the windowed blocks 0 and 1 are idle now
  world.cache.events().take();
  world.cache.set_time(1000);
  CHECK(world.cache.events().take().empty());
  world.end(sequence);
  world.cache.set_time(1009);
  CHECK(world.cache.events().take().empty());
  world.cache.set_time(1010);
  CHECK_EQ(world.cache.events().take().size(), 2U);
  world.check({&sequence});
}
