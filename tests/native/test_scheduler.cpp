#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include "runtime/native/src/scheduler.h"
#include "tests/native/check.h"

using namespace precast;
using Ids = std::vector<std::int32_t>;

namespace {

std::unique_ptr<Request> make_request(std::uint64_t id, std::size_t num_prompt_tokens, std::int32_t max_tokens) {
  auto request = std::make_unique<Request>();
  request->id = id;
  for (std::size_t i = 0; i < num_prompt_tokens; ++i) {
    request->token_ids.push_back(static_cast<std::int32_t>(100 * id + i));
  }
  request->num_prompt_tokens = num_prompt_tokens;
  request->sampling.max_tokens = max_tokens;
  return request;
}

/// A scheduler with somewhere for its events, and a session that samples what it is told.
struct World {
  explicit World(const SchedulerConfig& config) : scheduler(config) {}

  ScheduledStep schedule() {
    ScheduledStep step = scheduler.schedule();
    scheduler.check_integrity();
    return step;
  }

  void update(const ScheduledStep& step, const Ids& tokens) {
    std::vector<SampledToken> sampled;
    for (const std::int32_t token : tokens) sampled.push_back({token, {}});
    scheduler.update(step, sampled, emit);
    scheduler.check_integrity();
  }

  std::vector<Event> events;
  std::function<void(Event)> emit = [this](Event event) { events.push_back(std::move(event)); };
  Scheduler scheduler;
};

constexpr SchedulerConfig small{.max_batch_size = 4, .max_num_tokens = 8, .tokens_per_block = 4, .num_blocks = 16};

}  // namespace

TEST("a prompt and its output go through the pool block by block") {
  World world(small);
  world.scheduler.add(make_request(1, 3, 3));

  ScheduledStep step = world.schedule();
  CHECK(step.batch.token_ids == Ids({100, 101, 102}));
  CHECK(step.batch.query_starts == Ids({0, 3}));
  CHECK(step.batch.context_lengths == Ids({3}));
  CHECK(step.batch.block_tables.at(0).blocks == Ids({0}));
  CHECK(step.batch.logit_rows == Ids({2}));
  world.update(step, {7});

  step = world.schedule();
  CHECK(step.batch.token_ids == Ids({7}));
  CHECK(step.batch.context_lengths == Ids({4}));
  CHECK(step.batch.block_tables.at(0).blocks == Ids({0}));
  world.update(step, {8});

  step = world.schedule();
  CHECK(step.batch.context_lengths == Ids({5}));
  CHECK(step.batch.block_tables.at(0).blocks == Ids({0, 1}));
  world.update(step, {9});

  CHECK_EQ(world.events.size(), 4U);
  CHECK_EQ(world.events[2].token_id, 9);
  CHECK(world.events[3].finish_reason == FinishReason::length);
  CHECK_EQ(world.events[3].num_prompt_tokens, 3U);
  CHECK_EQ(world.events[3].num_output_tokens, 3U);
  CHECK_EQ(world.scheduler.pool().num_free(), 16);
  CHECK(!world.scheduler.has_unfinished());
}

TEST("a prompt longer than the token budget is computed in chunks, without logits until its end") {
  World world(small);
  world.scheduler.add(make_request(1, 19, 1));
  for (const std::int32_t context : {8, 16}) {
    const ScheduledStep step = world.schedule();
    CHECK_EQ(step.batch.num_tokens(), 8U);
    CHECK(step.batch.context_lengths == Ids({context}));
    CHECK(step.batch.logit_rows.empty());
    world.update(step, {});
  }
  const ScheduledStep last = world.schedule();
  CHECK(last.batch.token_ids == Ids({116, 117, 118}));
  CHECK(last.batch.block_tables.at(0).blocks == Ids({0, 1, 2, 3, 4}));
  CHECK(last.batch.logit_rows == Ids({2}));
}

TEST("sequences that need one token come before prompts, which fill the rest of the budget") {
  World world(small);
  world.scheduler.add(make_request(1, 2, 8));
  ScheduledStep step = world.schedule();
  world.update(step, {5});
  world.scheduler.add(make_request(2, 20, 8));
  world.scheduler.add(make_request(3, 20, 8));

  step = world.schedule();
  CHECK(step.batch.query_starts == Ids({0, 1, 8}));
  CHECK(step.batch.token_ids == Ids({5, 200, 201, 202, 203, 204, 205, 206}));
  CHECK(step.batch.logit_rows == Ids({0}));
  CHECK_EQ(step.batch.block_tables.at(0).width, 2);
  CHECK(step.batch.block_tables.at(0).blocks == Ids({0, -1, 1, 2}));
}

TEST("requests are admitted in order, when their last token has a place") {
  World world({.max_batch_size = 4, .max_num_tokens = 8, .tokens_per_block = 4, .num_blocks = 5});
  world.scheduler.add(make_request(1, 4, 4));   // 2 blocks
  world.scheduler.add(make_request(2, 4, 12));  // 4 blocks: waits
  world.scheduler.add(make_request(3, 1, 1));   // 1 block would fit, but is not served before 2
  ScheduledStep step = world.schedule();
  CHECK_EQ(world.scheduler.num_running(), 1U);
  CHECK_EQ(world.scheduler.num_waiting(), 2U);
  world.scheduler.cancel(1, world.emit);
  world.update(step, {5});
  world.schedule();
  CHECK_EQ(world.scheduler.num_running(), 2U);
}

TEST("a request that can never fit is a defect of the caller") {
  World world(small);
  CHECK_THROWS(world.scheduler.add(make_request(1, 60, 5)));
}

TEST("a stop token ends a request and is its last token") {
  World world(small);
  auto request = make_request(1, 2, 8);
  request->sampling.stop_token_ids = {42};
  world.scheduler.add(std::move(request));
  world.update(world.schedule(), {42});
  CHECK_EQ(world.events.size(), 2U);
  CHECK_EQ(world.events[0].token_id, 42);
  CHECK(world.events[1].finish_reason == FinishReason::stop);
  CHECK_EQ(world.events[1].stop_token_id, 42);
}

TEST("blocks of a cancelled request return when the step that names them was collected") {
  World world(small);
  world.scheduler.add(make_request(1, 6, 2));
  const ScheduledStep step = world.schedule();
  CHECK_EQ(world.scheduler.pool().num_free(), 14);
  CHECK(world.scheduler.cancel(1, world.emit));
  CHECK(!world.scheduler.cancel(1, world.emit));
  CHECK_EQ(world.scheduler.pool().num_free(), 14);
  world.update(step, {9});
  CHECK_EQ(world.scheduler.pool().num_free(), 16);
  CHECK_EQ(world.events.size(), 1U);
  CHECK(world.events[0].finish_reason == FinishReason::cancelled);
}

TEST("a failed step ends its own requests and no others") {
  World world({.max_batch_size = 4, .max_num_tokens = 4, .tokens_per_block = 4, .num_blocks = 16});
  world.scheduler.add(make_request(1, 4, 2));
  world.scheduler.add(make_request(2, 4, 2));
  const ScheduledStep step = world.schedule();
  world.scheduler.fail(step, Error(ErrorCode::onnxruntime, "no"), world.emit);
  world.scheduler.check_integrity();
  CHECK_EQ(world.events.size(), 1U);
  CHECK_EQ(world.events[0].request_id, 1U);
  CHECK(world.events[0].error.has_value());
  const ScheduledStep next = world.schedule();
  CHECK(next.batch.token_ids == Ids({200, 201, 202, 203}));
}

TEST("every request ends once and every block returns, whatever the history") {
  std::mt19937 random(11);
  for (int history = 0; history < 200; ++history) {
    const std::size_t max_batch_size = 1 + random() % 5;
    World world({.max_batch_size = max_batch_size,
                 .max_num_tokens = max_batch_size + random() % 12,
                 .tokens_per_block = 1 + random() % 5,
                 .num_blocks = 24});
    std::uint64_t num_added = 0;
    for (int turn = 0; turn < 400 && (turn < 60 || world.scheduler.has_unfinished()); ++turn) {
      if (turn < 60 && random() % 3 == 0) {
        world.scheduler.add(make_request(++num_added, 1 + random() % 12, static_cast<std::int32_t>(1 + random() % 10)));
      }
      const ScheduledStep step = world.schedule();
      if (random() % 8 == 0 && num_added > 0) world.scheduler.cancel(1 + random() % num_added, world.emit);
      if (step.sequences.empty()) continue;
      CHECK(step.batch.num_tokens() >= 1);
      if (random() % 16 == 0) {
        world.scheduler.fail(step, Error(ErrorCode::internal, "a bad day"), world.emit);
      } else {
        world.update(step, Ids(step.batch.logit_rows.size(), 1));
      }
    }
    std::map<std::uint64_t, int> ends;
    for (const Event& event : world.events) ends[event.request_id] += event.finish_reason != FinishReason::none;
    CHECK_EQ(ends.size(), num_added);
    for (const auto& [id, count] : ends) CHECK_EQ(count, 1);
    CHECK_EQ(world.scheduler.pool().num_free(), 24);
  }
}
