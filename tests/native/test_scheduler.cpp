// What advances, by how much, with which blocks. Prefixes: test_scheduler_reuse.cpp; two steps in flight:
// test_scheduler_in_flight.cpp; whole histories: test_scheduler_histories.cpp.
#include <cstdint>
#include <vector>

#include "runtime/native/src/scheduler.h"
#include "tests/native/check.h"
#include "tests/native/scheduler_world.h"

using namespace precast;
using namespace precast::test;

namespace {

const SchedulerConfig small{.max_batch_size = 4, .max_num_tokens = 8, .kv = {.tokens_per_block = 4, .num_blocks = 16}};

}  // namespace

TEST("a prompt and its output go through the pool block by block") {
  SchedulerWorld world(small);
  world.add(1, {100, 101, 102}, 3);

  ScheduledStep step = world.schedule();
  CHECK_EQ(step.batch.id, 1U);
  CHECK(step.batch.token_ids == Ids({100, 101, 102}));
  CHECK(step.batch.query_starts == Ids({0, 3}));
  CHECK(step.batch.context_lengths == Ids({3}));
  CHECK(blocks_of(step, 0) == Ids({0}));
  CHECK(step.batch.logit_rows == Ids({2}));
  CHECK(step.batch.needs_logits == std::vector<std::uint8_t>({1}));
  world.update(step, {7});

  step = world.schedule();
  CHECK(step.batch.token_ids == Ids({7}));
  CHECK(step.batch.context_lengths == Ids({4}));
  CHECK(blocks_of(step, 0) == Ids({0}));
  world.update(step, {8});

  step = world.schedule();
  CHECK(step.batch.context_lengths == Ids({5}));
  CHECK(blocks_of(step, 0) == Ids({0, 1}));
  world.update(step, {9});

  CHECK_EQ(world.events.size(), 4U);
  CHECK_EQ(world.events[2].token_id, 9);
  CHECK(world.events[3].finish_reason == FinishReason::length);
  CHECK(world.events[3].is_last);
  CHECK_EQ(world.events[3].num_prompt_tokens, 3U);
  CHECK_EQ(world.events[3].num_output_tokens, 3U);
  CHECK_EQ(world.num_free(), 16);
  CHECK(!world.scheduler.has_unfinished());
}

TEST("a prompt longer than the token budget is computed in chunks, without logits until its end") {
  SchedulerWorld world(small);
  world.add(1, range(100, 19), 1);
  for (const std::int32_t context : {8, 16}) {
    const ScheduledStep step = world.schedule();
    CHECK_EQ(step.batch.num_tokens(), 8U);
    CHECK(step.batch.context_lengths == Ids({context}));
    CHECK(step.batch.logit_rows.empty());
    world.update(step, {});
  }
  const ScheduledStep last = world.schedule();
  CHECK(last.batch.token_ids == Ids({116, 117, 118}));
  CHECK(blocks_of(last, 0) == Ids({0, 1, 2, 3, 4}));
  CHECK(last.batch.logit_rows == Ids({2}));
}

TEST("sequences that need one token always get it; prompts share the rest, in chunks of whole blocks") {
  SchedulerWorld world(small);
  world.add(1, {1, 2}, 8);
  world.update(world.schedule(), {5});
  world.add(2, range(200, 20), 1);
  world.add(3, range(300, 20), 1);

  ScheduledStep step = world.schedule();
  CHECK(step.batch.token_ids == Ids({5, 200, 201, 202, 203}));  // 3 of the 8 would end within a block
  CHECK(step.batch.query_starts == Ids({0, 1, 5}));
  CHECK(step.batch.logit_rows == Ids({0}));
  CHECK(blocks_of(step, 0) == Ids({0}));
  CHECK(blocks_of(step, 1) == Ids({1}));
  CHECK_EQ(world.scheduler.num_running(), 3U);
}

TEST("a budget smaller than a block still moves the first prompt, and one chunk later it is at a block's end") {
  SchedulerWorld world({.max_batch_size = 2, .max_num_tokens = 3, .kv = {.tokens_per_block = 4, .num_blocks = 16}});
  world.add(1, range(0, 9), 1);
  std::vector<std::int32_t> contexts;
  while (world.scheduler.has_unfinished()) {
    const ScheduledStep step = world.schedule();
    contexts.push_back(step.batch.context_lengths.front());
    world.update(step, Ids(step.batch.logit_rows.size(), 1));
  }
  CHECK(contexts == Ids({3, 4, 7, 9}));
}

TEST("guaranteed: requests are admitted in order, when their last token has a place") {
  SchedulerWorld world({.max_batch_size = 4, .max_num_tokens = 8, .kv = {.tokens_per_block = 4, .num_blocks = 5}});
  world.add(1, range(0, 4), 4);    // 2 blocks
  world.add(2, range(10, 4), 12);  // 4 blocks: waits
  world.add(3, {20}, 1);           // 1 block would fit, but is not served before 2
  const ScheduledStep step = world.schedule();
  CHECK_EQ(world.scheduler.num_running(), 1U);
  CHECK_EQ(world.scheduler.num_waiting(), 2U);
  CHECK_EQ(world.scheduler.num_unscheduled(), 2U);
  world.scheduler.cancel(1, world.emit);
  world.update(step, {5});
  world.schedule();
  CHECK_EQ(world.scheduler.num_running(), 2U);
}

TEST("higher priorities start first, and equal ones in order") {
  SchedulerWorld world({.max_batch_size = 1, .max_num_tokens = 8, .kv = {.tokens_per_block = 4, .num_blocks = 16}});
  world.add(1, {10}, 1);
  world.add(2, {20}, 1);
  const auto urgent = world.request(3, {30}, 1);
  urgent->priority = 0.9F;
  world.add(urgent);
  Ids order;
  while (world.scheduler.has_unfinished()) {
    const ScheduledStep step = world.schedule();
    order.push_back(step.batch.token_ids.front());
    world.update(step, {1});
  }
  CHECK(order == Ids({30, 10, 20}));
}

TEST("a higher priority does not wait for a prompt of a lower one") {
  SchedulerWorld world(small);
  world.add(1, range(100, 40), 1);
  world.update(world.schedule(), {});
  const auto urgent = world.request(2, range(200, 8), 1);
  urgent->priority = 1.0F;
  world.add(urgent);
  // The running prompt was first to take its chunk: admission comes after it, and the next step is the urgent one's.
  world.update(world.schedule(), {});
  CHECK_EQ(world.scheduler.num_waiting(), 1U);
}

TEST("max utilisation: whoever is least important gives its blocks back and goes on later") {
  SchedulerWorld world({.policy = CapacityPolicy::max_utilization,
                        .max_batch_size = 4,
                        .max_num_tokens = 16,
                        .kv = {.tokens_per_block = 4, .num_blocks = 4, .reuse = false}});
  world.add(1, range(100, 7), 6);  // 13 tokens, 4 blocks in the end
  world.add(2, range(200, 7), 6);
  ScheduledStep step = world.schedule();
  CHECK(step.batch.query_starts == Ids({0, 7, 14}));  // guaranteed would have started one of them
  world.update(step, {11, 21});
  world.update(world.schedule(), {12, 22});  // both blocks of both are full
  step = world.schedule();                   // 1 needs a third block: 2 is paused
  CHECK(step.batch.token_ids == Ids({12}));
  CHECK(blocks_of(step, 0) == Ids({0, 1, 2}));
  CHECK_EQ(world.scheduler.num_paused(), 1U);
  CHECK_EQ(world.scheduler.counters().num_preemptions, 1U);
  world.update(step, {13});
  for (const std::int32_t token : {14, 15}) world.update(world.schedule(), {token});
  world.update(world.schedule(), {16});
  CHECK(world.end_of(1) == FinishReason::length);
  step = world.schedule();  // 2 computes again what it had, its own output included, and wants its next token
  CHECK(step.batch.token_ids == Ids({200, 201, 202, 203, 204, 205, 206, 21, 22}));
  CHECK(step.batch.logit_rows == Ids({8}));
  CHECK_EQ(step.num_first_scheduled, 0U);
  world.update(step, {23});
  world.run_to_end(9);
  CHECK(world.tokens_of(2) == Ids({21, 22, 23, 9, 9, 9}));
  CHECK_EQ(world.events.back().num_preemptions, 1U);
  CHECK_EQ(world.num_free(), 4);
}

TEST("max utilisation: a more important request is never paused for a less important one") {
  SchedulerWorld world({.policy = CapacityPolicy::max_utilization,
                        .max_batch_size = 4,
                        .max_num_tokens = 16,
                        .kv = {.tokens_per_block = 4, .num_blocks = 4, .reuse = false}});
  world.add(1, range(100, 7), 6);
  const auto important = world.request(2, range(200, 7), 6);
  important->priority = 0.8F;
  world.add(important);
  world.run_to_end();
  CHECK_EQ(important->num_preemptions, 0U);
  CHECK(world.scheduler.counters().num_preemptions > 0);
}

TEST("static batch: the next requests start when all of the batch have ended") {
  SchedulerWorld world({.policy = CapacityPolicy::static_batch,
                        .max_batch_size = 2,
                        .max_num_tokens = 4,
                        .kv = {.tokens_per_block = 4, .num_blocks = 16}});
  world.add(1, range(0, 4), 1);
  world.add(2, range(10, 4), 3);
  world.add(3, range(20, 4), 1);
  world.update(world.schedule(), {1});  // the budget is spent on 1, and 2 is in the batch all the same
  CHECK_EQ(world.scheduler.num_running(), 1U);
  CHECK_EQ(world.scheduler.num_waiting(), 1U);
  for (int i = 0; i < 3; ++i) {
    CHECK_EQ(world.scheduler.num_waiting(), 1U);
    world.update(world.schedule(), {1});
  }
  CHECK(world.end_of(2) == FinishReason::length);
  CHECK(world.schedule().batch.token_ids == range(20, 4));
}

TEST("a request that can never fit is a defect of the caller") {
  SchedulerWorld world(small);
  CHECK_THROWS(world.add(1, range(0, 60), 5));
}

TEST("a stop token ends a request and is its last token, after min_tokens only") {
  SchedulerWorld world(small);
  const auto request = world.request(1, {1, 2}, 8);
  request->sampling.stop_token_ids = {42};
  request->sampling.eos_token_ids = {43};
  request->sampling.min_tokens = 1;
  world.add(request);
  world.update(world.schedule(), {42});
  world.update(world.schedule(), {43});
  CHECK(world.tokens_of(1) == Ids({42, 43}));
  CHECK(world.end_of(1) == FinishReason::stop);
  CHECK_EQ(world.events.back().stop_token_id, 43);
}

TEST("blocks of a cancelled request return when the step that names them was collected") {
  SchedulerWorld world({.max_batch_size = 4, .max_num_tokens = 8,
                        .kv = {.tokens_per_block = 4, .num_blocks = 16, .reuse = false}});
  world.add(1, range(0, 6), 2);
  const ScheduledStep step = world.schedule();
  CHECK_EQ(world.num_free(), 14);
  CHECK(world.scheduler.cancel(1, world.emit));
  CHECK(!world.scheduler.cancel(1, world.emit));
  CHECK_EQ(world.num_free(), 14);
  world.update(step, {9});
  CHECK_EQ(world.num_free(), 16);
  CHECK_EQ(world.events.size(), 1U);
  CHECK(world.events[0].finish_reason == FinishReason::cancelled);
}

TEST("deadlines end requests, waiting and running, and nothing else does") {
  SchedulerWorld world({.max_batch_size = 1, .max_num_tokens = 8, .kv = {.tokens_per_block = 4, .num_blocks = 16}});
  const auto running = world.request(1, {1}, 8);
  running->deadline_ns = 100;
  world.add(running);
  const auto waiting = world.request(2, {2}, 8);
  waiting->deadline_ns = 50;
  world.add(waiting);
  world.add(3, {3}, 1);
  world.update(world.schedule(10), {1});
  world.scheduler.expire(49, world.emit);
  CHECK(world.end_of(2) == FinishReason::none);
  world.scheduler.expire(50, world.emit);
  CHECK(world.end_of(2) == FinishReason::timeout);
  CHECK_EQ(world.events.back().first_scheduled_ns, 0);
  world.update(world.schedule(60), {1});
  world.scheduler.expire(100, world.emit);
  CHECK(world.end_of(1) == FinishReason::timeout);
  CHECK_EQ(world.events.back().first_scheduled_ns, 10);
  CHECK_EQ(world.events.back().num_output_tokens, 2U);
  world.run_to_end();
  CHECK(world.end_of(3) == FinishReason::length);
}

TEST("a failed step ends its own requests and no others") {
  SchedulerWorld world({.max_batch_size = 4, .max_num_tokens = 4, .kv = {.tokens_per_block = 4, .num_blocks = 16}});
  world.add(1, range(100, 4), 2);
  world.add(2, range(200, 4), 2);
  world.fail(world.schedule());
  CHECK_EQ(world.events.size(), 1U);
  CHECK_EQ(world.events[0].request_id, 1U);
  CHECK(world.events[0].error.has_value());
  CHECK(world.schedule().batch.token_ids == range(200, 4));
}

TEST("several sequences of one request end one by one, and the last one says so") {
  SchedulerWorld world(small);
  const auto first = world.request(1, {5}, 2);
  first->group->num_unfinished = 2;
  const auto second = std::make_shared<Request>(*first);
  second->sequence = 1;
  second->sampling.max_tokens = 1;
  world.scheduler.add({first, second});
  world.run_to_end();
  std::vector<std::pair<std::uint32_t, bool>> ends;
  for (const Event& event : world.events) {
    if (event.finish_reason != FinishReason::none) ends.emplace_back(event.sequence, event.is_last);
  }
  CHECK(ends == (std::vector<std::pair<std::uint32_t, bool>>{{1, false}, {0, true}}));
}
