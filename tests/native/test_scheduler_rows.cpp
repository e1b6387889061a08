// What a step asks of a session for each row: its token, so many of the most likely ones, or all logits.
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "tests/native/check.h"
#include "tests/native/scheduler_world.h"

using namespace precast;
using namespace precast::test;

namespace {

using Needs = std::pair<int, std::int32_t>;  // needs_logits, num_candidates
constexpr Needs token{0, 0};
constexpr Needs whole_row{1, 0};
constexpr Needs candidates(std::int32_t count) { return {0, count}; }

SchedulerConfig session(bool chooses_tokens, std::size_t max_candidates, std::size_t max_in_flight = 1) {
  return {.max_batch_size = 8,
          .max_num_tokens = 64,
          .max_in_flight = max_in_flight,
          .session_chooses_tokens = chooses_tokens,
          .max_candidates = max_candidates,
          .kv = {.tokens_per_block = 4, .num_blocks = 64}};
}

std::vector<Needs> needs_of(const ScheduledStep& step) {
  const StepBatch& batch = step.batch;
  CHECK_EQ(batch.needs_logits.size(), batch.logit_rows.size());
  CHECK_EQ(batch.num_candidates.size(), batch.logit_rows.size());
  std::vector<Needs> needs;
  for (std::size_t r = 0; r < batch.logit_rows.size(); ++r) needs.emplace_back(batch.needs_logits[r], batch.num_candidates[r]);
  return needs;
}

using Change = std::function<void(Request&)>;

/// Of the first row of a request, and of those behind tokens 1, 2, ... of its output, which runs ahead of nothing.
std::vector<Needs> needs_over_time(const SchedulerConfig& config, const Change& change, std::size_t num_rows) {
  SchedulerWorld world(config);
  const auto request = world.request(1, {1, 2, 3}, static_cast<std::int32_t>(num_rows));
  change(*request);
  world.add(request);
  std::vector<Needs> needs;
  for (std::size_t row = 1; row <= num_rows; ++row) {
    const ScheduledStep step = world.schedule();
    CHECK_EQ(step.batch.logit_rows.size(), 1U);
    needs.push_back(needs_of(step).front());
    world.update(step, {static_cast<std::int32_t>(row)});
  }
  return needs;
}

Needs first_needs(const SchedulerConfig& config, const Change& change) { return needs_over_time(config, change, 1).front(); }

Change drawn(std::int32_t top_k, std::int32_t num_logprobs = -1) {
  return [=](Request& request) {
    request.sampling.temperature = 1.0F;
    request.sampling.top_k = top_k;
    request.sampling.num_logprobs = num_logprobs;
  };
}

Change greedy(std::int32_t num_logprobs) {
  return [=](Request& request) { request.sampling.num_logprobs = num_logprobs; };
}

const Change edits[] = {
    [](Request& request) { request.use_logits_processor = true; },
    [](Request& request) { request.sampling.allowed_token_ids = {1, 2}; },
    [](Request& request) { request.sampling.bad_words = {{7}}; },
    [](Request& request) { request.sampling.min_tokens = 1; },
    [](Request& request) { request.sampling.logit_bias = {{3, 1.0F}}; },
    [](Request& request) { request.sampling.repetition_penalty = 1.1F; },
};

}  // namespace

TEST("rows: a greedy token is the session's own where it chooses any, else the first of its candidates, else of the whole row") {
  CHECK(first_needs(session(true, 8), greedy(-1)) == token);
  CHECK(first_needs(session(true, 0), greedy(-1)) == token);
  CHECK(first_needs(session(false, 8), greedy(-1)) == candidates(1));
  CHECK(first_needs(session(false, 0), greedy(-1)) == whole_row);
}

TEST("rows: logprobs and draws take as many candidates as they need, and the whole row beyond what the session has") {
  for (const bool chooses : {false, true}) {
    const SchedulerConfig config = session(chooses, 8);
    CHECK(first_needs(config, greedy(0)) == candidates(1));
    CHECK(first_needs(config, greedy(8)) == candidates(8));
    CHECK(first_needs(config, greedy(9)) == whole_row);
    CHECK(first_needs(config, drawn(1)) == candidates(1));
    CHECK(first_needs(config, drawn(8)) == candidates(8));
    CHECK(first_needs(config, drawn(9)) == whole_row);
    CHECK(first_needs(config, drawn(0)) == whole_row);
    CHECK(first_needs(config, drawn(3, 5)) == candidates(5));
    CHECK(first_needs(config, drawn(5, 3)) == candidates(5));
    CHECK(first_needs(config, drawn(3, 9)) == whole_row);
    CHECK(first_needs(session(chooses, 0), greedy(0)) == whole_row);
    CHECK(first_needs(session(chooses, 0), drawn(1)) == whole_row);
  }
}

TEST("rows: what edits logits takes the whole row") {
  for (const Change& edit : edits) {
    for (const Change& choice : {greedy(-1), greedy(2), drawn(4)}) {
      const auto both = [&](Request& request) {
        choice(request);
        edit(request);
      };
      CHECK(first_needs(session(true, 8), both) == whole_row);
    }
  }
}

TEST("rows: min_tokens counts while the output is shorter") {
  const auto with_min_tokens = [](const Change& choice) {
    return [choice](Request& request) {
      choice(request);
      request.sampling.min_tokens = 2;
    };
  };
  const SchedulerConfig config = session(true, 8);
  CHECK(needs_over_time(config, with_min_tokens(greedy(-1)), 4) == std::vector({whole_row, whole_row, token, token}));
  CHECK(needs_over_time(config, with_min_tokens(drawn(5)), 3) == std::vector({whole_row, whole_row, candidates(5)}));
}

TEST("rows: penalties count from the first output token on, bad words where the output ends with their beginning") {
  const auto presence = [](Request& request) {
    drawn(5)(request);
    request.sampling.presence_penalty = 0.5F;
  };
  CHECK(needs_over_time(session(false, 8), presence, 3) == std::vector({candidates(5), whole_row, whole_row}));
  const auto bad_words = [](Request& request) {
    request.sampling.num_logprobs = 1;
    request.sampling.bad_words = {{2, 9}};  // the second output token is a 2
  };
  CHECK(needs_over_time(session(true, 8), bad_words, 4) ==
        std::vector({candidates(1), candidates(1), whole_row, candidates(1)}));
}

TEST("rows: sequences of one request ask each for themselves") {
  SchedulerWorld world(session(false, 8));
  const auto first = world.request(1, {1, 2, 3}, 4);
  drawn(4)(*first);
  first->sampling.bad_words = {{7, 9}};
  first->group->num_unfinished = 2;
  const auto second = std::make_shared<Request>(*first);
  second->sequence = 1;
  world.scheduler.add({first, second});
  const ScheduledStep step = world.schedule();
  CHECK(needs_of(step) == std::vector({candidates(4), candidates(4)}));
  world.update(step, {7, 8});
  CHECK(needs_of(world.schedule()) == std::vector({whole_row, candidates(4)}));
}

TEST("rows: a greedy request with logprobs runs ahead on candidates, a drawn one waits") {
  SchedulerWorld world(session(true, 8, 2));
  const auto logprobs = world.request(1, {1, 2}, 4);
  greedy(3)(*logprobs);
  world.add(logprobs);
  const auto too_many = world.request(2, {3, 4}, 4);
  greedy(9)(*too_many);
  world.add(too_many);
  const auto random = world.request(3, {5, 6}, 4);
  drawn(3)(*random);
  world.add(random);
  const ScheduledStep first = world.schedule();
  CHECK(needs_of(first) == std::vector({candidates(3), whole_row, candidates(3)}));
  const ScheduledStep second = world.schedule();
  CHECK(needs_of(second) == std::vector({candidates(3)}));
  CHECK(second.batch.token_ids == Ids({-1}));
  CHECK_EQ(second.batch.token_sources.at(0).source_step, 1U);
  world.update(first, {11, 21, 31});
  world.update(second, {12});
  CHECK(world.tokens_of(1) == Ids({11, 12}));
}

TEST("rows: a session that has candidates and chooses no tokens is not run ahead of") {
  SchedulerWorld world(session(false, 8, 2));
  world.add(1, {1, 2}, 4);
  CHECK(needs_of(world.schedule()) == std::vector({candidates(1)}));
  CHECK(world.schedule().sequences.empty());
}

TEST("rows: a greedy request runs ahead as soon as it has min_tokens") {
  SchedulerWorld world(session(true, 0, 2));
  const auto request = world.request(1, {1, 2}, 6);
  request->sampling.min_tokens = 2;
  world.add(request);
  for (std::int32_t output = 11; output <= 12; ++output) {
    const ScheduledStep step = world.schedule();
    CHECK(needs_of(step) == std::vector({whole_row}));
    CHECK(world.schedule().sequences.empty());  // its token is ours to choose
    world.update(step, {output});
  }
  const ScheduledStep third = world.schedule();
  CHECK(needs_of(third) == std::vector({token}));
  const ScheduledStep fourth = world.schedule();
  CHECK(fourth.batch.token_ids == Ids({-1}));
  world.update(third, {13});
  world.update(fourth, {14});
  CHECK(world.tokens_of(1) == Ids({11, 12, 13, 14}));
}
