// Which blocks are found, taken, grown and kept, and what a failed step loses.
#include <cstdint>
#include <unordered_set>
#include <vector>

#include "tests/native/check.h"
#include "tests/native/kv_world.h"

using namespace precast;
using namespace precast::test;

namespace {

using Ids = KvWorld::Ids;
using Tables = std::vector<Ids>;
using Blocks = std::unordered_set<std::int32_t>;

const KvCacheConfig six_blocks_of_two{.tokens_per_block = 2, .num_blocks = 6};

}  // namespace

TEST("kv cache: a sequence grows by whole blocks, and not at all when there are too few") {
  KvWorld world(six_blocks_of_two);
  auto sequence = world.open({1, 2, 3, 4, 5});
  CHECK(world.compute(sequence));
  CHECK(sequence.kv.tables == Tables({{0, 1, 2}}));
  auto other = world.open({9, 9, 9, 9, 9, 9, 9});
  CHECK(!world.compute(other));
  CHECK_EQ(other.kv.num_held, 0U);
  CHECK_EQ(world.cache.pool().num_free(), 3);
  world.check({&sequence, &other});
}

TEST("kv cache: full blocks of the same tokens are found, in use and idle, and never the last token") {
  KvWorld world(six_blocks_of_two);
  auto first = world.open({1, 2, 3, 4, 5});
  CHECK(world.compute(first));
  CHECK_EQ(world.num_found({1, 2, 3, 4, 5}), 2U);
  CHECK_EQ(world.num_found({1, 2, 3, 4}), 1U);  // the second block holds the last token
  CHECK_EQ(world.num_found({1, 2}), 0U);
  CHECK_EQ(world.num_found({1, 2, 7}), 1U);
  CHECK_EQ(world.num_found({7, 2, 3, 4, 5}), 0U);  // the same block after other tokens is another

  auto second = world.open({1, 2, 3, 4, 6, 7});
  CHECK_EQ(world.reuse(second), 2U);
  CHECK(world.compute(second));
  CHECK(second.kv.tables == Tables({{0, 1, 3}}));
  CHECK_EQ(world.cache.num_reused(), 2U);
  CHECK_EQ(world.cache.num_allocated(), 4U);
  CHECK_EQ(world.cache.num_missed(), 3U);
  world.check({&first, &second});
  world.end(first);
  world.end(second);
  CHECK_EQ(world.cache.pool().num_free(), 6);
  CHECK_EQ(world.cache.pool().num_idle(), 3);  // the first one's half block is worth nothing
  CHECK_EQ(world.num_found({1, 2, 3, 4, 6, 7, 8}), 3U);
  world.check();
}

TEST("kv cache: what a hit shares with others in use is told apart from what is idle") {
  KvWorld world(six_blocks_of_two);
  world.run({1, 2, 3, 4});
  auto user = world.open({1, 2, 9});
  CHECK_EQ(world.reuse(user), 1U);
  auto asker = world.open({1, 2, 3, 4, 5});
  const KvCache::Hit hit = world.cache.find(asker.kv, asker.token_ids, 0);
  CHECK_EQ(hit.num_blocks, 2U);
  CHECK_EQ(hit.num_shared, 1U);
  CHECK_EQ(hit.num_shared_for_good, 1U);
}

TEST("kv cache: salts do not meet, and skip_reuse computes but gives") {
  KvWorld world(six_blocks_of_two);
  world.run({1, 2, 3}, "a");
  CHECK_EQ(world.num_found({1, 2, 3}), 0U);
  CHECK_EQ(world.num_found({1, 2, 3}, "b"), 0U);
  CHECK_EQ(world.num_found({1, 2, 3}, "a"), 1U);
  auto skipping = world.open({5, 6, 7}, "", {}, true);
  CHECK(world.compute(skipping));
  CHECK_EQ(world.num_found({5, 6, 7}), 1U);
  CHECK_EQ(world.cache.find(skipping.kv, skipping.token_ids, 0).num_blocks, 0U);
}

TEST("kv cache: with reuse disabled nothing is found and nothing kept") {
  KvCacheConfig config = six_blocks_of_two;
  config.reuse = false;
  KvWorld world(config);
  world.run({1, 2, 3, 4});
  CHECK_EQ(world.num_found({1, 2, 3, 4, 5}), 0U);
  CHECK_EQ(world.cache.pool().num_idle(), 0);
}

TEST("kv cache: two that compute the same keep one of the two blocks") {
  KvWorld world(six_blocks_of_two);
  auto first = world.open({1, 2, 3});
  auto second = world.open({1, 2, 3}, "", {}, true);
  CHECK(world.compute(first));
  CHECK(world.compute(second));
  world.end(second);
  CHECK_EQ(world.cache.pool().num_idle(), 0);
  world.end(first);
  CHECK_EQ(world.cache.pool().num_idle(), 1);
  CHECK_EQ(world.num_found({1, 2, 3}), 1U);
}

TEST("kv cache: reset forgets blocks in use as well, whose owners keep them") {
  KvWorld world(six_blocks_of_two);
  world.run({1, 1, 1, 1});
  auto user = world.open({2, 2, 2});
  CHECK(world.compute(user));
  world.cache.reset();
  CHECK_EQ(world.num_found({1, 1, 1, 1, 1}), 0U);
  CHECK_EQ(world.num_found({2, 2, 2}), 0U);
  CHECK_EQ(world.cache.pool().num_idle(), 0);
  world.check({&user});
  world.end(user);
  CHECK_EQ(world.cache.pool().num_idle(), 0);
  CHECK_EQ(world.cache.pool().num_free(), 6);
}

TEST("kv cache: blocks of an ended sequence come back when its last step was collected, and are found in the meantime") {
  KvWorld world(six_blocks_of_two);
  auto sequence = world.open({1, 1, 1, 1});
  CHECK(world.cache.grow(sequence.kv, 4));
  world.cache.store(sequence.kv, sequence.token_ids, 4, 0, 3);
  world.cache.retire(sequence.kv, 3);
  CHECK(world.cache.has_retiring());
  CHECK_EQ(world.cache.pool().num_free(), 4);
  CHECK_EQ(world.num_found({1, 1, 1, 1, 1}), 2U);
  world.cache.collected(2);
  CHECK_EQ(world.cache.pool().num_free(), 4);
  world.cache.collected(3);
  CHECK(!world.cache.has_retiring());
  CHECK_EQ(world.cache.pool().num_free(), 6);
  CHECK_EQ(world.num_found({1, 1, 1, 1, 1}), 2U);
}

TEST("kv cache: what a failed step should have written is forgotten, and what later steps built on it") {
  KvWorld world(six_blocks_of_two);
  auto sequence = world.open({1, 1, 2, 2, 3, 3});
  CHECK(world.cache.grow(sequence.kv, 6));
  world.cache.store(sequence.kv, sequence.token_ids, 2, 0, 4);
  world.cache.store(sequence.kv, sequence.token_ids, 4, 0, 5);
  world.cache.store(sequence.kv, sequence.token_ids, 6, 0, 6);
  CHECK(world.cache.forget_since(5) == Blocks({1, 2}));
  CHECK_EQ(world.num_found({1, 1, 2, 2, 3, 3, 4}), 1U);
  world.check({&sequence});
}

TEST("kv cache: a reset between taking and failing hides nothing from the failure") {
  KvWorld world(six_blocks_of_two);
  auto writer = world.open({1, 1, 1});
  CHECK(world.cache.grow(writer.kv, 3));
  world.cache.store(writer.kv, writer.token_ids, 3, 0, 7);
  auto reader = world.open({1, 1, 2});
  CHECK_EQ(world.reuse(reader), 1U);
  world.cache.reset();
  CHECK(world.cache.forget_since(7) == Blocks({0}));
  world.check({&writer, &reader});
}

TEST("kv cache: a window gives up what no later token sees, and is found by its last blocks alone") {
  KvWorld world({.tokens_per_block = 2, .num_blocks = 8, .windows = {3}});
  auto sequence = world.open({1, 1, 2, 2, 3, 3, 4, 4});
  for (const std::size_t end : {2U, 4U, 6U, 8U}) CHECK(world.compute(sequence, end));
  CHECK(sequence.kv.tables == Tables({{-1, -1, 2, 3}}));  // token 6 sees 4, 5 and itself
  CHECK_EQ(sequence.kv.num_held, 2U);
  auto reader = world.open({1, 1, 2, 2, 3, 3, 9});
  CHECK_EQ(world.reuse(reader), 3U);
  CHECK(reader.kv.tables == Tables({{-1, -1, 2}}));
  CHECK_EQ(world.cache.num_window_blocks(), 2U);  // one of them is shared
  world.check({&sequence, &reader});
}

TEST("kv cache: a prefix taken behind a gap gives up what lies before the gap") {
  KvWorld world({.tokens_per_block = 2, .num_blocks = 16, .windows = {3}});
  world.run({1, 1, 2, 2, 3, 3, 4, 4, 5, 5});
  auto sequence = world.open({1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6}, "", {}, true);
  CHECK(world.compute(sequence, 2));
  sequence.kv.skip_reuse = false;
  CHECK_EQ(world.reuse(sequence), 4U);
  CHECK(sequence.kv.tables == Tables({{-1, -1, -1, -1, 4}}));
  CHECK_EQ(sequence.kv.num_held, 1U);
  world.check({&sequence});
}

TEST("kv cache: beside a window a layer that sees everything needs every block") {
  KvWorld world({.tokens_per_block = 2, .num_blocks = 16, .windows = {0, 3}});
  auto sequence = world.open({1, 1, 2, 2, 3, 3});
  for (const std::size_t end : {2U, 4U, 6U}) CHECK(world.compute(sequence, end));
  CHECK(sequence.kv.tables == Tables({{0, 2, 4}, {-1, 3, 5}}));
  auto reader = world.open({1, 1, 2, 2, 3, 3, 9});
  CHECK_EQ(world.reuse(reader), 3U);
  CHECK(reader.kv.tables == Tables({{0, 2, 4}, {-1, -1, 5}}));
  CHECK_EQ(world.cache.peak_blocks(6, 2), 6U);
  world.check({&sequence, &reader});
}

TEST("kv cache: misuse is a defect") {
  KvWorld world(six_blocks_of_two);
  auto sequence = world.open({1, 2, 3, 4});
  CHECK_THROWS(world.cache.find(sequence.kv, sequence.token_ids, 1));
  CHECK_THROWS(world.cache.take(sequence.kv, {.num_blocks = 1}));
  CHECK_THROWS(KvCache({.tokens_per_block = 0, .num_blocks = 1}));
}
