// The engine around a session with two steps in flight: ids that come again, the queue's bound, and defects.
#include <cstdint>
#include <vector>

#include "tests/native/check.h"
#include "tests/native/late_session.h"
#include "tests/native/waiting.h"

using namespace precast;
using namespace precast::test;

TEST("a cancellation that comes too late is not meant for the next request of the same id") {
  Wire wire;
  const auto engine = make_engine(wire);
  for (int i = 0; i < 2000; ++i) {
    // The cancellation comes while the only step of the request is computed: its token is the end.
    wire.gate.close();
    const int num_collected = wire.num_collecting;
    engine->submit({greedy(1, {1}, 1)});
    CHECK(comes_true([&] { return wire.num_collecting != num_collected; }));
    CHECK(engine->cancel(1));
    wire.gate.open();
    std::vector<Event> first;
    CHECK(comes_true([&] {
      for (Event& event : engine->wait(1, 0)) first.push_back(std::move(event));
      return !first.empty() && first.back().finish_reason != FinishReason::none;
    }));
    CHECK(first.back().finish_reason == FinishReason::length);
    engine->submit({greedy(1, {7}, 1)});
    const std::vector<Event> second = wait_for_ends(*engine, 1);
    CHECK(second.back().finish_reason == FinishReason::length);
  }
}

TEST("the queue has room as soon as its requests are in a step") {
  Wire wire;
  wire.gate.close();
  const auto engine = make_engine(wire, 1);
  CHECK(engine->submit({greedy(1, {1}, 1)}));
  CHECK(comes_true([&] { return wire.num_collecting > 0; }));  // 1 has left the queue, its step is not over
  CHECK(engine->submit({greedy(2, {1}, 1)}));
  CHECK(!engine->submit({greedy(3, {1}, 1)}));
  wire.gate.open();
  check_ends(wait_for_ends(*engine, 2), 2, 1);
}

TEST("a defect of the session ends every sequence once, whichever call it strikes") {
  for (int call = 0; call < 12; ++call) {
    Wire wire;
    wire.calls_until_defect = call;
    const auto engine = make_engine(wire);
    engine->submit({greedy(1, Ids(20, 1), 3, 2), greedy(2, Ids(9, 2), 3, 2), greedy(3, {3}, 3, 2)});
    const std::vector<Event> events = wait_for_ends(*engine, 6);
    check_ends(events, 3, 2);
    CHECK(events.back().error.has_value());
    CHECK_THROWS(engine->submit({greedy(4, {1}, 1)}));
    CHECK_THROWS(engine->wait(1, -1));
  }
}

TEST("a session without memory for a step fails that step, and the engine goes on") {
  for (int call = 0; call < 8; ++call) {
    Wire wire;
    wire.defect_is_bad_alloc = true;
    wire.calls_until_defect = call;
    const auto engine = make_engine(wire);
    engine->submit({greedy(1, Ids(20, 1), 3)});
    check_ends(wait_for_ends(*engine, 1), 1, 1);
  }
}

TEST("steps stay readable for a session until it is destroyed, also when the engine stopped") {
  Wire wire;
  wire.calls_until_defect = 2;  // the first collect, with two steps in flight
  {
    const auto engine = make_engine(wire);
    engine->submit({greedy(1, Ids(20, 3), 3)});
    wait_for_ends(*engine, 1);
  }
  CHECK_EQ(wire.sum_at_end.load(), 3 * 16);
}
