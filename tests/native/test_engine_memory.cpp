// An engine whose memory runs out, not in a session's hands but in its own.
#include <cstddef>
#include <cstdint>
#include <list>
#include <new>
#include <string>
#include <vector>

#include "tests/native/check.h"
#include "tests/native/late_session.h"

using namespace precast;
using namespace precast::test;

TEST("when memory runs out every sequence ends once, whichever allocation of the engine fails, alone or with all that follow") {
  for (const Failing failing : {Failing::once, Failing::for_good}) {
    // Step 5 gives the last tokens of some sequences and tokens of others.
    for (std::size_t num_left = 0;; ++num_left) {
      Wire wire;
      wire.hunger = Hunger{Hunger::Call::collect, 5, num_left, failing};
      const auto engine = make_engine(wire);
      engine->submit({greedy(1, Ids(20, 1), 3, 2), greedy(2, Ids(9, 2), 3, 2), greedy(3, {3}, 3, 2)});
      const std::vector<Event> events = wait_for_ends(*engine, 6);
      check_ends(events, 3, 2);
      bool has_failed = false;
      for (const Event& event : events) {
        if (event.finish_reason != FinishReason::error) continue;
        has_failed = true;
        CHECK_EQ(static_cast<int>(event.error->code()), static_cast<int>(ErrorCode::resource_exhausted));
      }
      if (!has_failed) {
        CHECK(num_left > 100);
        break;
      }
      if (failing == Failing::once) continue;  // it may have ended a step, and not the engine
      CHECK_THROWS(engine->wait(1, -1));
      CHECK_THROWS(engine->submit({greedy(4, {1}, 1)}));
      CHECK(!engine->cancel(1));
    }
  }
}

TEST("the end of a sequence that there is no memory for is told later") {
  Wire wire;
  wire.calls_until_defect = 0;
  const auto engine = make_engine(wire);
  engine->submit({greedy(1, {1}, 1, 3)});
  CHECK_EQ(engine->wait(1, patience_ns).size(), 1U);
  fail_allocations(0, Failing::for_good);
  bool has_thrown = false;
  try {
    engine->wait(3, -1, [](Event&) {});
  } catch (const std::bad_alloc&) {
    has_thrown = true;
  }
  stop_failing();
  CHECK(has_thrown);
  const std::vector<Event> rest = engine->wait(3, 0);
  CHECK_EQ(rest.size(), 2U);
  CHECK(!rest[0].is_last && rest[1].is_last);
  CHECK_EQ(rest[1].error->what(), std::string("the engine stopped: a planted defect; please report this message, and load "
                                              "the engine again"));
}

TEST("a session is never left with a step that the engine has no memory for") {
  // Containers ask for memory now and then: the failure must meet them then.
  for (std::uint64_t step = 1; step <= 40; ++step) {
    Wire wire;
    wire.hunger = Hunger{Hunger::Call::enqueue, step, 0, Failing::once};
    {
      const auto engine = make_engine(wire);
      engine->submit({greedy(1, {1}, 48)});
      const std::vector<Event> events = wait_for_ends(*engine, 1);
      check_ends(events, 1, 1);
      CHECK(events.back().error->code() == ErrorCode::resource_exhausted);
    }
    CHECK_EQ(wire.num_spoilt.load(), 0);
  }
}

TEST("what a reader of statistics and KV events could not keep comes again, before what is newer") {
  Wire wire;
  const auto engine = make_engine(wire);
  const auto run = [&](std::uint64_t id) {
    engine->submit({greedy(id, Ids(9, static_cast<std::int32_t>(id)), 2)});
    wait_for_ends(*engine, 1);
  };
  run(1);
  const auto fail_late = [&](std::uint64_t id) {
    return [&run, id](const auto& taken) {
      CHECK(!taken.empty());
      run(id);  // the engine does not wait for who reads
      throw std::bad_alloc();
    };
  };
  CHECK_THROWS(engine->take_iteration_stats(fail_late(2)));
  CHECK_THROWS(engine->take_kv_events(fail_late(3)));
  std::vector<std::uint64_t> steps;
  engine->take_iteration_stats([&](const std::list<IterationStats>& taken) {
    for (const IterationStats& iteration : taken) steps.push_back(iteration.totals.steps);
  });
  CHECK_EQ(steps.size(), engine->stats().steps);
  for (std::size_t i = 0; i < steps.size(); ++i) CHECK_EQ(steps[i], i + 1);
  std::vector<std::uint64_t> ids;
  engine->take_kv_events([&](const std::list<KvEvent>& taken) {
    for (const KvEvent& event : taken) ids.push_back(event.id);
  });
  CHECK_EQ(ids.size(), 1U + 3);  // created, and a chain of each request
  for (std::size_t i = 0; i < ids.size(); ++i) CHECK_EQ(ids[i], i);
  engine->take_iteration_stats([](const auto& taken) { CHECK(taken.empty()); });
  engine->take_kv_events([](const auto& taken) { CHECK(taken.empty()); });
}
