#include <cstdint>
#include <map>
#include <optional>
#include <random>
#include <vector>

#include "runtime/native/src/block_pool.h"
#include "tests/native/check.h"

using precast::BlockPool;
using precast::BlockRank;
using Blocks = std::vector<std::int32_t>;

namespace {

struct World {
  explicit World(std::int32_t num_blocks) : pool(num_blocks, [this](std::int32_t block) { evicted.push_back(block); }) {}

  Blocks allocate(std::size_t count) {
    Blocks blocks;
    CHECK(pool.allocate(count, blocks));
    return blocks;
  }

  Blocks evicted;
  BlockPool pool;
};

}  // namespace

TEST("a block pool gives ids from 0 upwards, and the ones that became blank last first") {
  World world(4);
  CHECK(world.allocate(2) == Blocks({0, 1}));
  CHECK(world.allocate(1) == Blocks({2}));
  world.pool.release(1, std::nullopt);
  world.pool.release(0, std::nullopt);
  CHECK_EQ(world.pool.num_free(), 3);
  CHECK(world.allocate(3) == Blocks({0, 1, 3}));
  world.pool.check_integrity();
}

TEST("a block pool without room changes nothing") {
  World world(3);
  Blocks blocks = world.allocate(2);
  CHECK(!world.pool.allocate(2, blocks));
  CHECK(blocks == Blocks({0, 1}));
  CHECK_EQ(world.pool.num_free(), 1);
  world.pool.check_integrity();
}

TEST("blank blocks go first, then idle ones by priority, last use and depth") {
  World world(6);
  world.allocate(5);
  world.pool.release(0, BlockRank{.priority = 35, .last_use = 2, .depth = 0});
  world.pool.release(1, BlockRank{.priority = 35, .last_use = 1, .depth = 0});
  world.pool.release(2, BlockRank{.priority = 35, .last_use = 1, .depth = 1});
  world.pool.release(3, BlockRank{.priority = 20, .last_use = 9, .depth = 0});
  world.pool.release(4, BlockRank{.priority = 80, .last_use = 0, .depth = 0});
  CHECK_EQ(world.pool.num_free(), 6);
  CHECK_EQ(world.pool.num_idle(), 5);
  CHECK(world.allocate(6) == Blocks({5, 3, 2, 1, 0, 4}));
  CHECK(world.evicted == Blocks({3, 2, 1, 0, 4}));
}

TEST("another rank changes when an idle block goes") {
  World world(2);
  world.allocate(2);
  world.pool.release(0, BlockRank{.priority = 35, .last_use = 1, .depth = 0});
  world.pool.release(1, BlockRank{.priority = 35, .last_use = 2, .depth = 0});
  world.pool.rerank(0, BlockRank{.priority = 36, .last_use = 1, .depth = 0});
  CHECK(world.allocate(1) == Blocks({1}));
  world.pool.check_integrity();
}

TEST("a shared block is free when its last owner has released it") {
  World world(1);
  world.allocate(1);
  world.pool.share(0);
  CHECK_EQ(world.pool.num_owners(0), 2);
  world.pool.release(0, std::nullopt);
  CHECK_EQ(world.pool.num_free(), 0);
  world.pool.release(0, BlockRank{});
  CHECK(world.pool.is_idle(0));
  world.pool.share(0);
  CHECK(!world.pool.is_idle(0));
  CHECK(world.evicted.empty());
}

TEST("forgetting an idle block makes it blank, and nobody is told") {
  World world(2);
  world.allocate(2);
  world.pool.release(0, BlockRank{});
  world.pool.forget(0);
  CHECK_EQ(world.pool.num_idle(), 0);
  CHECK(world.allocate(1) == Blocks({0}));
  CHECK(world.evicted.empty());
}

TEST("a block pool refuses misuse") {
  World world(3);
  CHECK_THROWS(world.pool.release(0, std::nullopt));
  CHECK_THROWS(world.pool.release(3, std::nullopt));
  CHECK_THROWS(world.pool.release(-1, std::nullopt));
  CHECK_THROWS(world.pool.share(0));
  CHECK_THROWS(world.pool.forget(0));
  CHECK_THROWS(world.pool.rerank(0, {}));
  CHECK_THROWS(World(0));
}

TEST("a block pool stays whole through random histories") {
  std::mt19937 random(7);
  for (int history = 0; history < 50; ++history) {
    World world(static_cast<std::int32_t>(1 + random() % 40));
    std::map<std::int32_t, int> owners;
    for (int step = 0; step < 300; ++step) {
      const auto block = static_cast<std::int32_t>(random() % static_cast<unsigned>(world.pool.num_blocks()));
      switch (random() % 4) {
        case 0: {
          Blocks blocks;
          if (world.pool.allocate(random() % 6, blocks)) {
            for (const std::int32_t one : blocks) CHECK_EQ(++owners[one], 1);
          }
          break;
        }
        case 1:
          if (owners[block] > 0 || world.pool.is_idle(block)) {
            world.pool.share(block);
            ++owners[block];
          }
          break;
        default:
          if (owners[block] == 0) break;
          --owners[block];
          world.pool.release(block, random() % 2 == 0 ? std::nullopt : std::optional(BlockRank{.priority = static_cast<std::uint32_t>(random() % 3)}));
      }
      world.pool.check_integrity();
      for (const auto& [one, count] : owners) CHECK_EQ(world.pool.num_owners(one), count);
    }
  }
}
