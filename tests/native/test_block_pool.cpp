#include <cstdint>
#include <random>
#include <vector>

#include "runtime/native/src/block_pool.h"
#include "tests/native/check.h"

using precast::BlockPool;
using Blocks = std::vector<std::int32_t>;

TEST("a block pool gives ids from 0 upwards, and the ones returned last first") {
  BlockPool pool(4);
  Blocks a;
  Blocks b;
  CHECK(pool.allocate(2, a));
  CHECK(pool.allocate(1, b));
  CHECK(a == Blocks({0, 1}));
  CHECK(b == Blocks({2}));
  pool.release(a);
  CHECK(a.empty());
  CHECK_EQ(pool.num_free(), 3);
  CHECK(pool.allocate(2, b));
  CHECK(b == Blocks({2, 0, 1}));
  pool.check_integrity();
}

TEST("a block pool without room changes nothing") {
  BlockPool pool(3);
  Blocks a;
  CHECK(pool.allocate(2, a));
  CHECK(!pool.allocate(2, a));
  CHECK(a == Blocks({0, 1}));
  CHECK_EQ(pool.num_free(), 1);
  pool.check_integrity();
}

TEST("a block pool refuses misuse") {
  BlockPool pool(3);
  Blocks twice{0};
  CHECK_THROWS(pool.release(twice));
  Blocks foreign{3};
  CHECK_THROWS(pool.release(foreign));
  CHECK_THROWS(BlockPool(0));
}

TEST("a block pool stays whole through random histories") {
  std::mt19937 random(7);
  for (int history = 0; history < 50; ++history) {
    BlockPool pool(static_cast<std::int32_t>(1 + random() % 40));
    std::vector<Blocks> owners(5);
    for (int step = 0; step < 200; ++step) {
      Blocks& owner = owners[random() % owners.size()];
      if (random() % 3 == 0) pool.release(owner);
      else static_cast<void>(pool.allocate(random() % 6, owner));
      pool.check_integrity();
      std::size_t owned = 0;
      for (const Blocks& blocks : owners) owned += blocks.size();
      CHECK_EQ(owned, static_cast<std::size_t>(pool.num_blocks() - pool.num_free()));
    }
  }
}
