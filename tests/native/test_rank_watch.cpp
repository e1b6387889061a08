// plugins/collectives/cpu/rank_watch.h, with clocks and ranks that the tests move.
#include "plugins/collectives/cpu/rank_watch.h"

#include <array>
#include <optional>

#include "tests/native/check.h"

namespace precast {
namespace {

using std::chrono::milliseconds;

// Rank 0 watches, with a timeout of a second, and looks every 50 ms. Ranks that run and wait have a pulse.
struct World {
  std::array<RankSigns, 4> ranks{};
  std::array<bool, 4> is_stopped{};
  RankWatch::Clock::time_point now{};
  RankWatch watch{0, 4, milliseconds(1000), milliseconds(50)};

  void wait(std::size_t rank, std::size_t awaited) { ranks[rank].waits_for = static_cast<std::uint32_t>(awaited) + 1; }

  std::optional<std::size_t> look(std::size_t awaited, milliseconds step = milliseconds(50)) {
    now += step;
    for (std::size_t rank = 0; rank < 4; ++rank) ranks[rank].pulse += ranks[rank].waits_for != 0 && !is_stopped[rank];
    return watch.look(now, awaited, [&](std::size_t rank) { return ranks[rank]; });
  }

  // Whom rank 0, waiting for `awaited`, is out of patience with, and after how many milliseconds; 4 after ten seconds.
  std::pair<std::size_t, int> outcome(std::size_t awaited) {
    watch.begin(now);
    for (int i = 1; i <= 200; ++i) {
      if (const auto rank = look(awaited)) return {*rank, 50 * i};
    }
    return {4, 0};
  }
};

}  // namespace

TEST("rank watch: a rank that does nothing is named when the timeout is over, and not before") {
  World world;
  CHECK(world.outcome(2) == std::pair(std::size_t{2}, 1050));
  CHECK(world.outcome(2) == std::pair(std::size_t{2}, 1050));  // every wait has all of it
}

TEST("rank watch: the last of a chain is named, and as long as that makes progress nobody is") {
  World world;
  world.wait(1, 2);
  world.wait(2, 3);
  CHECK(world.outcome(1) == std::pair(std::size_t{3}, 1050));
  world.watch.begin(world.now);
  for (int i = 0; i < 100; ++i) {
    if (i % 15 == 0) ++world.ranks[3].progress;
    CHECK(!world.look(1));
  }
}

TEST("rank watch: a rank that was stopped while it waited is named, though it says that it waits for one that is alive") {
  World world;
  world.wait(1, 3);
  world.is_stopped[1] = true;
  world.watch.begin(world.now);
  std::optional<std::size_t> named;
  int num_looks = 0;
  while (!named && ++num_looks < 100) {
    ++world.ranks[3].progress;  // idle, but alive
    named = world.look(1);
  }
  CHECK_EQ(named.value_or(4), 1U);
  CHECK_EQ(num_looks, 21);
  World circle;  // the same where the one that it says it waits for waits for this one, or for the first of the chain
  circle.wait(1, 2);
  circle.is_stopped[1] = true;
  circle.wait(2, 0);
  CHECK_EQ(circle.outcome(1).first, 1U);
  circle.wait(2, 1);
  CHECK_EQ(circle.outcome(1).first, 1U);
  CHECK_EQ(circle.outcome(2).first, 1U);
}

TEST("rank watch: a circle of ranks that all wait ends before it closes") {
  World world;
  world.wait(1, 2);
  world.wait(2, 0);
  CHECK_EQ(world.outcome(1).first, 2U);
  world.wait(2, 3);
  world.wait(3, 2);  // a circle without the first of the chain
  CHECK(world.outcome(1).first >= 2);
  CHECK(world.outcome(1).first <= 3);
}

TEST("rank watch: time in which the whole machine slept is not held against anybody") {
  World world;
  world.watch.begin(world.now);
  for (int i = 0; i < 4; ++i) CHECK(!world.look(1, std::chrono::hours(1)));
  int num_looks = 0;
  while (!world.look(1)) CHECK(++num_looks < 100);
  CHECK_EQ(num_looks, 7);  // the first look begins to count: 3 x 200 ms and 8 x 50 ms
}

TEST("rank watch: a rank that joins the chain late has all its time") {
  World world;
  world.wait(1, 2);
  world.watch.begin(world.now);
  for (int i = 0; i < 18; ++i) CHECK(!world.look(1));
  world.wait(1, 3);
  for (int i = 0; i < 20; ++i) CHECK(!world.look(1));
  CHECK_EQ(world.look(1).value_or(4), 3U);
}

}  // namespace precast
