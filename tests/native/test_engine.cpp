#include <atomic>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "runtime/native/src/engine.h"
#include "tests/native/check.h"
#include "tests/native/waiting.h"

using namespace precast;
using namespace precast::test;
using Ids = std::vector<std::int32_t>;

namespace {

constexpr std::int32_t vocab_size = 50;

/// Says that token t is followed by t + 1; fails a step that holds the token `poison`; gives NaN after `nan_token`.
class CountingSession final : public Session {
 public:
  static constexpr std::int32_t poison = 49;
  static constexpr std::int32_t nan_token = 48;

  std::size_t max_in_flight() const noexcept override { return 1; }

  void enqueue(const StepBatch& batch) override { batch_ = &batch; }

  StepResult collect(std::uint64_t step) override {
    CHECK_EQ(step, batch_->id);
    if (gate != nullptr) gate->pass();
    for (const std::int32_t token : batch_->token_ids) {
      if (token == poison) throw Error(ErrorCode::onnxruntime, "poisoned");
    }
    logits_.assign(batch_->logit_rows.size() * vocab_size, 0.0F);
    for (std::size_t row = 0; row < batch_->logit_rows.size(); ++row) {
      const std::int32_t token = batch_->token_ids[static_cast<std::size_t>(batch_->logit_rows[row])];
      logits_[row * vocab_size + static_cast<std::size_t>((token + 1) % vocab_size)] = 10.0F;
      if (token == nan_token) logits_[row * vocab_size] = std::numeric_limits<float>::quiet_NaN();
    }
    return {.logits = logits_, .token_ids = {}};
  }

  Gate* gate = nullptr;  // when given, steps wait for it

 private:
  const StepBatch* batch_ = nullptr;
  std::vector<float> logits_;
};

const SchedulerConfig config{
    .max_batch_size = 4, .max_num_tokens = 16, .kv = {.tokens_per_block = 4, .num_blocks = 32}};
const EngineLimits limits{.vocab_size = vocab_size, .max_seq_len = 64, .eos_token_ids = {40}};

std::unique_ptr<Engine> make_engine(Gate* gate = nullptr) {
  auto session = std::make_unique<CountingSession>();
  session->gate = gate;
  return std::make_unique<Engine>(std::move(session), config, limits, EngineSettings{.audit = true});
}

Submission greedy(std::uint64_t id, Ids prompt, std::int32_t max_tokens) {
  Submission submission;
  submission.id = id;
  submission.prompt_token_ids = std::move(prompt);
  submission.max_tokens = max_tokens;
  submission.sampling.temperature = 0.0F;
  return submission;
}

std::vector<Event> wait_for_ends(Engine& engine, std::size_t count) {
  std::vector<Event> events;
  while (count > 0) {
    const std::vector<Event> some = engine.wait(16, patience_ns);
    CHECK(!some.empty());
    for (const Event& event : some) {
      count -= event.finish_reason != FinishReason::none;
      events.push_back(event);
    }
  }
  return events;
}

Ids tokens_of(const std::vector<Event>& events, std::uint64_t id) {
  Ids tokens;
  for (const Event& event : events) {
    if (event.request_id == id && event.finish_reason == FinishReason::none) tokens.push_back(event.token_id);
  }
  return tokens;
}

ErrorCode code_of(Engine& engine, std::vector<Submission> submissions) {
  try {
    engine.submit(std::move(submissions));
  } catch (const Error& error) {
    return error.code();
  }
  return ErrorCode{0};
}

}  // namespace

TEST("the engine runs requests side by side to their ends") {
  const auto engine = make_engine();
  engine->submit({greedy(1, {3, 4, 5}, 4), greedy(2, {38}, 9), greedy(3, Ids(40, 7), 2)});
  const std::vector<Event> events = wait_for_ends(*engine, 3);
  CHECK(tokens_of(events, 1) == Ids({6, 7, 8, 9}));
  CHECK(tokens_of(events, 2) == Ids({39, 40}));
  CHECK(tokens_of(events, 3) == Ids({8, 9}));
  const EngineStats stats = engine->stats();
  CHECK_EQ(stats.prompt_tokens_computed, 44U);
  CHECK_EQ(stats.output_tokens, 8U);
  CHECK_EQ(stats.num_completed_requests, 3U);
  CHECK_EQ(stats.num_active_requests, 0U);
  CHECK_EQ(stats.num_free_blocks, 32U);
}

TEST("max_tokens 0 and too large mean as many as fit, and end-of-sequence ids can be ignored") {
  const auto engine = make_engine();
  Submission submission = greedy(1, {39}, 0);
  submission.ignore_eos = true;
  engine->submit({submission, greedy(2, Ids(60, 1), 1000)});
  const std::vector<Event> events = wait_for_ends(*engine, 2);
  CHECK_EQ(tokens_of(events, 2).size(), 4U);
  CHECK_EQ(tokens_of(events, 1).at(0), 40);
  CHECK(tokens_of(events, 1).size() > 1);
}

TEST("min_tokens is held against max_tokens as the caller gave it") {
  const auto engine = make_engine();
  Submission long_one = greedy(1, {2}, 45);  // 40 would end it after 38 tokens
  long_one.sampling.min_tokens = 40;
  Submission as_many_as_fit = greedy(2, {2}, 0);
  as_many_as_fit.sampling.min_tokens = 64;
  engine->submit({long_one, as_many_as_fit});
  const std::vector<Event> events = wait_for_ends(*engine, 2);
  CHECK(tokens_of(events, 1).size() >= 40);
  CHECK_EQ(tokens_of(events, 2).size(), 63U);
  Submission bad = greedy(3, {2}, 8);
  bad.sampling.min_tokens = 9;
  CHECK(code_of(*engine, {bad}) == ErrorCode::invalid_argument);
  bad = greedy(3, {2}, 0);
  bad.sampling.min_tokens = 65;
  CHECK(code_of(*engine, {bad}) == ErrorCode::invalid_argument);
}

TEST("invalid requests are refused together with the call they are in") {
  const auto engine = make_engine();
  const Submission good = greedy(1, {1}, 1);
  CHECK(code_of(*engine, {good, greedy(2, {}, 1)}) == ErrorCode::invalid_argument);
  CHECK(code_of(*engine, {good, greedy(2, {50}, 1)}) == ErrorCode::invalid_argument);
  CHECK(code_of(*engine, {good, greedy(2, {-1}, 1)}) == ErrorCode::invalid_argument);
  CHECK(code_of(*engine, {good, greedy(2, Ids(64, 1), 1)}) == ErrorCode::invalid_argument);
  CHECK(code_of(*engine, {good, good}) == ErrorCode::invalid_argument);
  for (const float temperature : {-1.0F, std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    Submission bad = good;
    bad.sampling.temperature = temperature;
    CHECK(code_of(*engine, {bad}) == ErrorCode::invalid_argument);
  }
  for (const float top_p : {0.0F, 1.5F, std::numeric_limits<float>::quiet_NaN()}) {
    Submission bad = good;
    bad.sampling.top_p = top_p;
    CHECK(code_of(*engine, {bad}) == ErrorCode::invalid_argument);
  }
  CHECK(engine->wait(1, 0).empty());
  engine->submit({good});  // nothing of the refused calls is left: the id is free
  wait_for_ends(*engine, 1);
}

TEST("an id is taken until its request has ended") {
  Gate gate(false);
  const auto engine = make_engine(&gate);
  engine->submit({greedy(1, {1}, 1)});
  CHECK(code_of(*engine, {greedy(1, {1}, 1)}) == ErrorCode::invalid_argument);
  gate.open();
  wait_for_ends(*engine, 1);
  engine->submit({greedy(1, {1}, 1)});
  wait_for_ends(*engine, 1);
}

TEST("a request whose logits are not numbers fails alone") {
  const auto engine = make_engine();
  engine->submit({greedy(1, {CountingSession::nan_token}, 4), greedy(2, {3}, 2)});
  const std::vector<Event> events = wait_for_ends(*engine, 2);
  CHECK(tokens_of(events, 1).empty());
  CHECK(tokens_of(events, 2) == Ids({4, 5}));
  for (const Event& event : events) CHECK_EQ(event.error.has_value(), event.request_id == 1);
}

TEST("a step that fails ends its requests, and the engine goes on") {
  const auto engine = make_engine();
  engine->submit({greedy(1, {CountingSession::poison}, 4)});
  const std::vector<Event> events = wait_for_ends(*engine, 1);
  CHECK(events[0].error.has_value() && events[0].error->code() == ErrorCode::onnxruntime);
  engine->submit({greedy(2, {3}, 2)});
  CHECK(tokens_of(wait_for_ends(*engine, 1), 2) == Ids({4, 5}));
}

TEST("cancelling ends a request once, waiting or running") {
  Gate gate(false);
  const auto engine = make_engine(&gate);
  std::vector<Submission> submissions;
  for (std::uint64_t id = 1; id <= 6; ++id) submissions.push_back(greedy(id, {1}, 8));
  engine->submit(submissions);
  CHECK(engine->cancel(1));
  CHECK(engine->cancel(6));
  CHECK(!engine->cancel(7));
  gate.open();
  const std::vector<Event> events = wait_for_ends(*engine, 6);
  std::map<std::uint64_t, FinishReason> ends;
  for (const Event& event : events) {
    if (event.finish_reason != FinishReason::none) ends[event.request_id] = event.finish_reason;
  }
  CHECK(ends[1] == FinishReason::cancelled);
  CHECK(ends[6] == FinishReason::cancelled);
  CHECK(ends[3] == FinishReason::length);
  CHECK(!engine->cancel(3));
}

TEST("shutting down cancels, delivers what is left, then says so") {
  Gate gate(false);
  const auto engine = make_engine(&gate);
  engine->submit({greedy(1, {1}, 30), greedy(2, {1}, 30)});
  engine->shutdown();
  engine->shutdown();
  gate.open();
  CHECK(code_of(*engine, {greedy(3, {1}, 1)}) == ErrorCode::shut_down);
  const std::vector<Event> events = wait_for_ends(*engine, 2);
  for (const Event& event : events) {
    if (event.finish_reason != FinishReason::none) CHECK(event.finish_reason == FinishReason::cancelled);
  }
  CHECK_THROWS(engine->wait(1, -1));
}

TEST("shutting down wakes those who wait") {
  const auto engine = make_engine();
  std::atomic<int> woken = 0;
  std::vector<std::thread> waiters;
  for (int i = 0; i < 3; ++i) {
    waiters.emplace_back([&] {
      try {
        engine->wait(1, -1);
      } catch (const Error& error) {
        woken += error.code() == ErrorCode::shut_down;
      }
    });
  }
  engine->shutdown();
  for (std::thread& waiter : waiters) waiter.join();
  CHECK_EQ(woken.load(), 3);
}

TEST("a poll and a time-out give nothing and are no errors") {
  const auto engine = make_engine();
  CHECK(engine->wait(4, 0).empty());
  CHECK(engine->wait(4, 1'000'000).empty());
}

TEST("an event that there is no memory for stays in the queue") {
  const auto engine = make_engine();
  engine->submit({greedy(1, {3}, 3)});
  Ids tokens;
  std::size_t num_calls = 0;
  for (bool is_over = false; !is_over;) {
    const auto take = [&](Event& event) {
      if (++num_calls % 2 == 0) throw std::bad_alloc();
      is_over = event.is_last;
      if (!is_over) tokens.push_back(event.token_id);
    };
    try {
      CHECK_EQ(engine->wait(8, patience_ns, take), 1U);  // 0: the event is lost
    } catch (const std::bad_alloc&) {
      CHECK(num_calls % 2 == 0);
    }
  }
  CHECK(tokens == Ids({4, 5, 6}));
  CHECK(engine->wait(8, 0).empty());
}

TEST("many clients at once: every request ends once") {
  const auto engine = make_engine();
  constexpr int num_clients = 4;
  constexpr int per_client = 100;
  std::vector<std::thread> clients;
  for (int client = 0; client < num_clients; ++client) {
    clients.emplace_back([&engine, client] {
      std::mt19937 random(static_cast<unsigned>(client));
      for (int i = 0; i < per_client; ++i) {
        const auto id = static_cast<std::uint64_t>(client * per_client + i);
        engine->submit({greedy(id, Ids(1 + random() % 20, 2), static_cast<std::int32_t>(1 + random() % 8))});
        if (random() % 5 == 0) engine->cancel(id);
      }
    });
  }
  std::map<std::uint64_t, int> ends;
  for (const Event& event : wait_for_ends(*engine, num_clients * per_client)) {
    ends[event.request_id] += event.finish_reason != FinishReason::none;
  }
  for (std::thread& client : clients) client.join();
  CHECK_EQ(ends.size(), static_cast<std::size_t>(num_clients * per_client));
  for (const auto& [id, count] : ends) CHECK_EQ(count, 1);
  CHECK_EQ(engine->stats().num_free_blocks, 32U);
}
