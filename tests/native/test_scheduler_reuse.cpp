// What is computed is computed once: by running, ended and preempted requests, and by those of the same step.
#include <cstdint>
#include <memory>
#include <vector>

#include "tests/native/check.h"
#include "tests/native/scheduler_world.h"

using namespace precast;
using namespace precast::test;

namespace {

const SchedulerConfig small{.max_batch_size = 4, .max_num_tokens = 32, .kv = {.tokens_per_block = 4, .num_blocks = 16}};

/// Prompt tokens computed for sixteen requests with 512 tokens in common and 32 of their own.
std::uint64_t prompt_tokens_of_sixteen(CapacityPolicy policy, std::size_t max_num_tokens, std::size_t num_at_once) {
  SchedulerWorld world({.policy = policy,
                        .max_batch_size = 16,
                        .max_num_tokens = max_num_tokens,
                        .kv = {.tokens_per_block = 16, .num_blocks = 1000}});
  for (std::int32_t i = 0; i < 16; ++i) {
    Ids prompt = range(0, 512);
    for (const std::int32_t token : range(1000 * (i + 1), 32)) prompt.push_back(token);
    world.add(static_cast<std::uint64_t>(i), prompt, 4);
    if (static_cast<std::size_t>(i) % num_at_once != num_at_once - 1) continue;
    const ScheduledStep step = world.schedule();
    world.update(step, Ids(step.batch.logit_rows.size(), 1));
  }
  world.run_to_end();
  const SchedulerCounters& counters = world.scheduler.counters();
  CHECK_EQ(counters.prompt_tokens_computed + counters.prompt_tokens_reused, 16U * 544U);
  CHECK_EQ(world.num_free(), 1000);
  return counters.prompt_tokens_computed;
}

}  // namespace

TEST("sixteen requests with a common prefix compute it once, all at once or one after another, in any chunks") {
  for (const CapacityPolicy policy :
       {CapacityPolicy::guaranteed_no_evict, CapacityPolicy::max_utilization, CapacityPolicy::static_batch}) {
    for (const std::size_t budget : {16U, 17U, 40U, 100U, 512U, 2048U, 10'000U}) {
      for (const std::size_t num_at_once : {1U, 5U, 16U}) {
        CHECK_EQ(prompt_tokens_of_sixteen(policy, budget, num_at_once), 512U + 16U * 32U);
      }
    }
  }
}

TEST("requests of one step share the blocks that the first of them computes in it") {
  SchedulerWorld world(small);
  world.add(1, {1, 2, 3, 4, 5, 6, 7, 8, 9}, 1);
  world.add(2, {1, 2, 3, 4, 5, 6, 7, 8, 10, 11}, 1);
  world.add(3, {1, 2, 3, 4, 20}, 1);
  const ScheduledStep step = world.schedule();
  CHECK(step.batch.token_ids == Ids({1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 20}));
  CHECK(step.batch.query_starts == Ids({0, 9, 11, 12}));
  CHECK(step.batch.context_lengths == Ids({9, 10, 5}));
  CHECK(blocks_of(step, 0) == Ids({0, 1, 2}));
  CHECK(blocks_of(step, 1) == Ids({0, 1, 3}));
  CHECK(blocks_of(step, 2) == Ids({0, 4}));
  world.update(step, {7, 7, 7});
  CHECK_EQ(world.events[1].num_cached_tokens, 0U);
  CHECK_EQ(world.events[3].num_cached_tokens, 8U);
  CHECK_EQ(world.events[5].num_cached_tokens, 4U);
}

TEST("a prompt that is there to its last token computes its last block again, in one of its own") {
  SchedulerWorld world(small);
  world.add(1, range(1, 8), 2);
  world.update(world.schedule(), {50});
  world.add(2, range(1, 8), 1);
  const ScheduledStep step = world.schedule();
  CHECK(step.batch.token_ids == Ids({50, 5, 6, 7, 8}));
  CHECK(blocks_of(step, 0) == Ids({0, 1, 2}));
  CHECK(blocks_of(step, 1) == Ids({0, 3}));
}

TEST("output is reused like a prompt, from a request that has ended") {
  SchedulerWorld world(small);
  world.add(1, {1, 2, 3}, 6);
  for (const std::int32_t token : {4, 5, 6, 7, 8, 9}) world.update(world.schedule(), {token});
  CHECK(world.end_of(1) == FinishReason::length);
  world.add(2, {1, 2, 3, 4, 5, 6, 7, 8, 30}, 1);  // what 1 said, and a new question
  const ScheduledStep step = world.schedule();
  CHECK(step.batch.token_ids == Ids({30}));
  CHECK(blocks_of(step, 0) == Ids({0, 1, 2}));
}

TEST("a running prompt takes up what another one has computed in the meantime") {
  SchedulerWorld world({.max_batch_size = 2, .max_num_tokens = 4, .kv = {.tokens_per_block = 4, .num_blocks = 32}});
  world.add(1, range(1, 16), 1);
  world.add(2, range(1, 20), 1);
  std::vector<Ids> contexts;
  while (world.scheduler.has_unfinished()) {
    const ScheduledStep step = world.schedule();
    contexts.push_back(step.batch.context_lengths);
    world.update(step, Ids(step.batch.logit_rows.size(), 1));
  }
  CHECK(contexts == (std::vector<Ids>{{4}, {8}, {12}, {16}, {20}}));
  CHECK_EQ(world.scheduler.counters().prompt_tokens_computed, 20U);
}

TEST("salts and skip_block_reuse keep requests apart") {
  SchedulerWorld world(small);
  world.add(1, range(1, 8), 4);
  world.add(world.request(2, range(1, 8), 1, "salt"));
  const auto skipping = world.request(3, range(1, 8), 1);
  skipping->kv.skip_reuse = true;
  world.add(skipping);
  const ScheduledStep step = world.schedule();
  CHECK(step.batch.query_starts == Ids({0, 8, 16, 24}));
  CHECK(blocks_of(step, 1) == Ids({2, 3}));
  CHECK(blocks_of(step, 2) == Ids({4, 5}));
  CHECK_EQ(world.scheduler.counters().prompt_tokens_reused, 0U);
}

TEST("a preempted request finds its own blocks again where nobody needed them") {
  SchedulerWorld world({.policy = CapacityPolicy::max_utilization,
                        .max_batch_size = 2,
                        .max_num_tokens = 32,
                        .kv = {.tokens_per_block = 4, .num_blocks = 5}});
  world.add(1, range(100, 7), 3);
  world.add(2, range(200, 8), 5);
  ScheduledStep step = world.schedule();
  CHECK(blocks_of(step, 1) == Ids({2, 3}));
  world.update(step, {11, 21});
  step = world.schedule();  // 2 takes the fifth block
  CHECK(blocks_of(step, 1) == Ids({2, 3, 4}));
  world.update(step, {12, 22});
  step = world.schedule();  // 1 needs another one: 2 gives up all of its own, and only its half block is used
  CHECK(blocks_of(step, 0) == Ids({0, 1, 4}));
  CHECK_EQ(world.scheduler.num_paused(), 1U);
  world.update(step, {13});
  CHECK(world.end_of(1) == FinishReason::length);
  step = world.schedule();
  CHECK(step.batch.token_ids == Ids({21, 22}));
  CHECK(blocks_of(step, 0) == Ids({2, 3, 4}));
  world.update(step, {23});
  world.run_to_end(9);
  CHECK(world.tokens_of(2) == Ids({21, 22, 23, 9, 9}));
  CHECK_EQ(world.events.back().num_preemptions, 1U);
  CHECK_EQ(world.events.back().num_cached_tokens, 0U);  // it had computed its prompt itself
}
