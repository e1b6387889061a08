// Two steps in flight: what happens between a step's description and its result.
#include <cstdint>
#include <memory>
#include <vector>

#include "tests/native/check.h"
#include "tests/native/scheduler_world.h"

using namespace precast;
using namespace precast::test;

namespace {

SchedulerConfig two_in_flight(bool chooses_tokens) {
  return {.max_batch_size = 4,
          .max_num_tokens = 16,
          .max_in_flight = 2,
          .session_chooses_tokens = chooses_tokens,
          .kv = {.tokens_per_block = 4, .num_blocks = 16}};
}

/// Of the only token source of a step.
void check_source(const ScheduledStep& step, std::int32_t row, std::int32_t source_row, std::uint64_t source_step) {
  CHECK_EQ(step.batch.token_sources.size(), 1U);
  CHECK_EQ(step.batch.token_sources[0].row, row);
  CHECK_EQ(step.batch.token_sources[0].source_row, source_row);
  CHECK_EQ(step.batch.token_sources[0].source_step, source_step);
}

}  // namespace

TEST("in flight: a request whose next token is not known waits for it, a long prompt goes on") {
  SchedulerWorld world(two_in_flight(false));
  world.add(1, {1, 2, 3}, 3);
  world.add(2, range(200, 20), 1);
  const ScheduledStep first = world.schedule();
  CHECK(first.batch.query_starts == Ids({0, 3, 15}));
  const ScheduledStep second = world.schedule();
  CHECK(second.batch.token_ids == range(212, 8));
  CHECK(world.schedule().sequences.empty());
  world.update(first, {7});
  const ScheduledStep third = world.schedule();
  CHECK(third.batch.token_ids == Ids({7}));
  CHECK_EQ(third.batch.id, 3U);
}

TEST("in flight: a session that chooses tokens runs ahead of what is known, and says from where") {
  SchedulerWorld world(two_in_flight(true));
  world.add(1, {1, 2, 3}, 3);
  const ScheduledStep first = world.schedule();
  CHECK(first.batch.needs_logits == std::vector<std::uint8_t>({0}));
  CHECK(first.batch.token_sources.empty());
  const ScheduledStep second = world.schedule();
  CHECK(second.batch.token_ids == Ids({-1}));
  check_source(second, 0, 0, 1);
  CHECK(second.batch.context_lengths == Ids({4}));
  CHECK(second.batch.logit_rows == Ids({0}));
  world.update(first, {7});
  const ScheduledStep third = world.schedule();
  check_source(third, 0, 0, 2);
  CHECK(third.batch.context_lengths == Ids({5}));
  world.update(second, {8});
  CHECK(world.schedule().sequences.empty());  // the third token is the last: it is never computed
  world.update(third, {9});
  CHECK(world.tokens_of(1) == Ids({7, 8, 9}));
  CHECK(world.end_of(1) == FinishReason::length);
  CHECK_EQ(world.num_free(), 16);
}

TEST("in flight: rows of requests that want more than the largest logit need logits and do not run ahead") {
  SchedulerWorld world(two_in_flight(true));
  world.add(1, {1, 2}, 4);
  const auto sampled = world.request(2, {3, 4}, 4);
  sampled->sampling.temperature = 1.0F;
  world.add(sampled);
  const auto logprobs = world.request(3, {5, 6}, 4);
  logprobs->sampling.num_logprobs = 0;
  world.add(logprobs);
  const auto processed = world.request(4, {7, 8}, 4);
  processed->use_logits_processor = true;
  world.add(processed);
  const ScheduledStep first = world.schedule();
  CHECK(first.batch.needs_logits == std::vector<std::uint8_t>({0, 1, 1, 1}));
  const ScheduledStep second = world.schedule();
  CHECK_EQ(second.sequences.size(), 1U);
  check_source(second, 0, 0, 1);
}

TEST("in flight: what was computed beyond a stop token is nobody's") {
  SchedulerWorld world(two_in_flight(true));
  const auto request = world.request(1, {1, 2, 3}, 9);
  request->sampling.stop_token_ids = {42};
  world.add(request);
  const ScheduledStep first = world.schedule();
  const ScheduledStep second = world.schedule();
  world.update(first, {42});
  CHECK(world.end_of(1) == FinishReason::stop);
  CHECK(second.sequences[0].is_stale());
  CHECK_EQ(world.num_free(), 15);  // the step in flight still writes
  CHECK(world.schedule().sequences.empty());
  world.update(second, {5});
  CHECK(world.tokens_of(1) == Ids({42}));
  CHECK_EQ(world.num_free(), 16);
}

TEST("in flight: blocks of a cancelled request go to nobody before the last step that names them was collected") {
  SchedulerConfig config = two_in_flight(true);
  config.kv.num_blocks = 2;
  config.kv.reuse = false;
  SchedulerWorld world(config);
  world.add(1, range(1, 4), 4);
  const ScheduledStep first = world.schedule();
  const ScheduledStep second = world.schedule();  // in block 1
  world.scheduler.cancel(1, world.emit);
  world.add(2, range(11, 4), 4);
  CHECK(world.schedule().sequences.empty());
  world.update(first, {7});
  CHECK_EQ(world.num_free(), 0);
  CHECK(world.schedule().sequences.empty());
  world.update(second, {8});
  const ScheduledStep third = world.schedule();
  CHECK(third.batch.token_ids == range(11, 4));
  CHECK(world.tokens_of(1).empty());
}

TEST("in flight: a deadline ends a request between description and result") {
  SchedulerWorld world(two_in_flight(true));
  const auto request = world.request(1, {1, 2, 3}, 9);
  request->deadline_ns = 10;
  world.add(request);
  const ScheduledStep first = world.schedule(1);
  const ScheduledStep second = world.schedule(2);
  world.scheduler.expire(10, world.emit);
  CHECK(world.end_of(1) == FinishReason::timeout);
  world.update(first, {7});
  world.update(second, {8});
  CHECK_EQ(world.events.size(), 1U);
  CHECK_EQ(world.num_free(), 16);
}

TEST("in flight: a request that is preempted drops the results on their way and computes them again") {
  SchedulerConfig config = two_in_flight(true);
  config.policy = CapacityPolicy::max_utilization;
  config.kv.num_blocks = 3;
  config.kv.reuse = false;
  SchedulerWorld world(config);
  world.add(1, range(101, 4), 6);
  world.add(2, range(201, 3), 6);
  const ScheduledStep first = world.schedule();   // 1 in block 0, 2 in block 1
  const ScheduledStep second = world.schedule();  // 1 in block 2, 2 fills block 1
  CHECK(second.batch.context_lengths == Ids({5, 4}));
  world.update(first, {11, 21});
  const ScheduledStep third = world.schedule();   // 2 finds no block and is the least important itself
  CHECK_EQ(world.scheduler.num_paused(), 1U);
  CHECK(third.batch.context_lengths == Ids({6}));
  CHECK(second.sequences[1].is_stale());
  world.update(second, {12, 22});
  CHECK(world.tokens_of(2) == Ids({21}));
  world.update(third, {13});
  for (std::int32_t token = 14; token <= 16; ++token) world.update(world.schedule(), {token});
  CHECK(world.end_of(1) == FinishReason::length);
  const ScheduledStep again = world.schedule();
  CHECK(again.batch.token_ids == Ids({201, 202, 203, 21}));
  world.update(again, {22});
  CHECK(world.tokens_of(2) == Ids({21, 22}));
}

TEST("in flight: a failed step is forgotten, and who took blocks from it starts anew with the right tokens") {
  SchedulerWorld world(two_in_flight(false));
  world.add(1, range(1, 8), 2);
  const ScheduledStep first = world.schedule();
  world.add(2, {1, 2, 3, 4, 5, 6, 7, 8, 9}, 2);
  const ScheduledStep second = world.schedule();
  CHECK(second.batch.token_ids == Ids({9}));  // on two blocks that the first step writes
  CHECK(blocks_of(second, 0) == Ids({0, 1, 2}));
  world.fail(first);
  CHECK(world.end_of(1) == FinishReason::error);
  CHECK(second.sequences[0].is_stale());
  const ScheduledStep third = world.schedule();
  CHECK(third.batch.token_ids == range(1, 9));
  world.update(second, {77});  // built on garbage
  CHECK(world.tokens_of(2).empty());
  world.update(third, {10});
  CHECK(world.tokens_of(2) == Ids({10}));
  CHECK_EQ(world.scheduler.counters().num_preemptions, 1U);
}

TEST("in flight: a step that is refused ends its own requests; the blocks of older steps stay until they are collected") {
  SchedulerConfig config = two_in_flight(false);
  config.max_num_tokens = 4;
  SchedulerWorld world(config);
  world.add(1, range(1, 4), 2);
  world.add(2, range(11, 4), 2);
  const ScheduledStep first = world.schedule();
  const ScheduledStep second = world.schedule();
  CHECK(second.batch.token_ids == range(11, 4));
  world.fail(second);  // enqueue refused it
  CHECK(world.end_of(2) == FinishReason::error);
  CHECK(world.end_of(1) == FinishReason::none);
  world.scheduler.cancel(1, world.emit);
  CHECK_EQ(world.num_free(), 14);  // both wait for the first step
  world.update(first, {5});
  CHECK_EQ(world.num_free(), 16);
  world.add(3, {11, 12, 13, 14, 15}, 1);
  CHECK_EQ(world.schedule().batch.num_tokens(), 4U);  // of 2 nothing is found
}

TEST("in flight: a block that a window has left is another's at once, the last blocks of a cancelled request are not") {
  SchedulerConfig config = two_in_flight(true);
  config.max_num_tokens = 8;
  config.kv.windows = {0, 4};
  config.kv.reuse = false;
  SchedulerWorld world(config);
  world.add(1, range(101, 12), 4);
  const ScheduledStep first = world.schedule();
  CHECK(first.batch.token_ids == range(101, 8));
  CHECK(blocks_of(first, 0, 0) == Ids({0, 1}));
  CHECK(blocks_of(first, 0, 1) == Ids({2, 3}));
  // Nothing of 1 is computed yet: its window, which has moved on to position 5 in this step, leaves nothing behind.
  const ScheduledStep second = world.schedule();
  CHECK(second.batch.token_ids == range(109, 4));
  CHECK(blocks_of(second, 0, 0) == Ids({0, 1, 4}));
  CHECK(blocks_of(second, 0, 1) == Ids({2, 3, 5}));
  world.add(2, range(201, 4), 2);
  CHECK_EQ(world.num_free(), 10);
  world.update(first, {});
  // Now it leaves block 2. The second step, which is in flight, names it and does not see it.
  const ScheduledStep third = world.schedule();
  CHECK(third.batch.token_ids == Ids({-1, 201, 202, 203, 204}));
  check_source(third, 0, 0, 2);
  CHECK(blocks_of(third, 0, 0) == Ids({0, 1, 4, 2}));
  CHECK(blocks_of(third, 0, 1) == Ids({-1, 3, 5, 6}));
  CHECK(blocks_of(third, 1, 0) == Ids({7}));
  CHECK(blocks_of(third, 1, 1) == Ids({8}));
  world.update(second, {21});
  // And block 3, which goes to 2.
  const ScheduledStep fourth = world.schedule();
  CHECK(fourth.batch.token_ids == Ids({-1, -1}));
  CHECK(fourth.batch.context_lengths == Ids({14, 5}));
  CHECK(blocks_of(fourth, 0, 0) == Ids({0, 1, 4, 2}));
  CHECK(blocks_of(fourth, 0, 1) == Ids({-1, -1, 5, 6}));
  CHECK(blocks_of(fourth, 1, 0) == Ids({7, 3}));
  CHECK(blocks_of(fourth, 1, 1) == Ids({8, 9}));
  CHECK_EQ(world.num_free(), 6);
  world.scheduler.cancel(1, world.emit);
  world.update(third, {22, 31});
  CHECK_EQ(world.num_free(), 6);  // the fourth step still writes to what 1 had
  CHECK(world.schedule().sequences.empty());
  world.update(fourth, {23, 32});
  CHECK_EQ(world.num_free(), 16);
  CHECK(world.tokens_of(1) == Ids({21}));
  CHECK(world.end_of(1) == FinishReason::cancelled);
  CHECK(world.tokens_of(2) == Ids({31, 32}));
  CHECK(world.end_of(2) == FinishReason::length);
  world.add(3, range(301, 8), 1);
  const ScheduledStep fifth = world.schedule();
  CHECK(blocks_of(fifth, 0, 0) == Ids({7, 3}));  // as 2, who gave them back last, had them
  CHECK(blocks_of(fifth, 0, 1) == Ids({8, 9}));
}
