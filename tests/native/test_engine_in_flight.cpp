// The engine around a session with two steps in flight: ids that come again, the queue's bound, and defects.
#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <new>
#include <stdexcept>
#include <thread>
#include <vector>

#include "runtime/native/src/engine.h"
#include "tests/native/check.h"

using namespace precast;

namespace {

using Ids = std::vector<std::int32_t>;

constexpr std::int32_t vocab_size = 50;
constexpr std::int64_t second_ns = 1'000'000'000;

/// What a test and its session say to each other, from two threads.
struct Wire {
  std::atomic<bool> open = true;               // steps are collected
  std::atomic<int> num_collecting = 0;         // calls of collect
  std::atomic<int> calls_until_defect = -1;    // of enqueue and collect together; below 0: never
  bool defect_is_bad_alloc = false;
  std::atomic<std::int64_t> sum_at_end = -1;   // of the tokens in steps that were never collected
};

/// Token t is followed by t + 1; up to two steps in flight.
class LateSession final : public Session {
 public:
  explicit LateSession(Wire& wire) : wire_(wire) {}

  /// As a device would that is still at work.
  ~LateSession() override {
    std::int64_t sum = 0;
    for (const StepBatch* batch : in_flight_) {
      for (const std::int32_t token : batch->token_ids) sum += token;
    }
    wire_.sum_at_end = sum;
  }

  std::size_t max_in_flight() const noexcept override { return 2; }

  void enqueue(const StepBatch& batch) override {
    break_down();
    in_flight_.push_back(&batch);
  }

  StepResult collect(std::uint64_t step) override {
    ++wire_.num_collecting;
    while (!wire_.open) std::this_thread::yield();
    if (!wire_.defect_is_bad_alloc) break_down();  // with the step still in its hands
    const StepBatch& batch = *in_flight_.front();
    CHECK_EQ(batch.id, step);
    in_flight_.pop_front();
    if (wire_.defect_is_bad_alloc) break_down();  // a step that has failed is over
    logits_.assign(batch.logit_rows.size() * vocab_size, 0.0F);
    for (std::size_t row = 0; row < batch.logit_rows.size(); ++row) {
      const std::int32_t token = batch.token_ids[static_cast<std::size_t>(batch.logit_rows[row])];
      logits_[row * vocab_size + static_cast<std::size_t>((token + 1) % vocab_size)] = 10.0F;
    }
    return {.logits = logits_, .token_ids = {}};
  }

 private:
  void break_down() {
    if (wire_.calls_until_defect < 0 || wire_.calls_until_defect-- > 0) return;
    if (wire_.defect_is_bad_alloc) throw std::bad_alloc();
    throw std::logic_error("a planted defect");
  }

  Wire& wire_;
  std::deque<const StepBatch*> in_flight_;
  std::vector<float> logits_;
};

std::unique_ptr<Engine> make_engine(Wire& wire, std::size_t max_queue_size = 0) {
  SchedulerConfig config{.max_batch_size = 4, .max_num_tokens = 8, .max_in_flight = 2,
                         .kv = {.tokens_per_block = 4, .num_blocks = 64}};
  EngineSettings settings;
  settings.audit = true;
  settings.max_queue_size = max_queue_size;
  return std::make_unique<Engine>(std::make_unique<LateSession>(wire), config,
                                  EngineLimits{.vocab_size = vocab_size, .max_seq_len = 64, .eos_token_ids = {}}, settings);
}

Submission greedy(std::uint64_t id, Ids prompt, std::int32_t max_tokens, std::uint32_t n = 1) {
  Submission submission;
  submission.id = id;
  submission.prompt_token_ids = std::move(prompt);
  submission.max_tokens = max_tokens;
  submission.sampling.temperature = 0.0F;
  submission.n = n;
  return submission;
}

/// Until `count` sequences have ended.
std::vector<Event> wait_for_ends(Engine& engine, std::size_t count) {
  std::vector<Event> events;
  while (count > 0) {
    for (Event& event : engine.wait(64, 20 * second_ns)) {
      count -= event.finish_reason != FinishReason::none;
      events.push_back(std::move(event));
    }
  }
  return events;
}

/// Every sequence ends once, and is_last is said once, by the last of them.
void check_ends(const std::vector<Event>& events, std::size_t num_requests, std::uint32_t n) {
  std::map<std::pair<std::uint64_t, std::uint32_t>, int> ends;
  std::map<std::uint64_t, std::uint32_t> num_ends;
  for (const Event& event : events) {
    if (event.finish_reason == FinishReason::none) continue;
    CHECK_EQ(++ends[std::pair(event.request_id, event.sequence)], 1);
    CHECK_EQ(event.is_last, ++num_ends[event.request_id] == n);
  }
  CHECK_EQ(ends.size(), num_requests * n);
}

}  // namespace

TEST("a cancellation that comes too late is not meant for the next request of the same id") {
  Wire wire;
  const auto engine = make_engine(wire);
  for (int i = 0; i < 2000; ++i) {
    // The cancellation comes while the only step of the request is computed: its token is the end.
    wire.open = false;
    const int num_collected = wire.num_collecting;
    engine->submit({greedy(1, {1}, 1)});
    while (wire.num_collecting == num_collected) std::this_thread::yield();
    CHECK(engine->cancel(1));
    wire.open = true;
    std::vector<Event> first;
    while (first.empty() || first.back().finish_reason == FinishReason::none) {
      for (Event& event : engine->wait(1, 0)) first.push_back(std::move(event));
    }
    CHECK(first.back().finish_reason == FinishReason::length);
    engine->submit({greedy(1, {7}, 1)});
    const std::vector<Event> second = wait_for_ends(*engine, 1);
    CHECK(second.back().finish_reason == FinishReason::length);
  }
}

TEST("the queue has room as soon as its requests are in a step") {
  Wire wire;
  wire.open = false;
  const auto engine = make_engine(wire, 1);
  CHECK(engine->submit({greedy(1, {1}, 1)}));
  while (wire.num_collecting == 0) std::this_thread::yield();  // 1 has left the queue, its step is not over
  CHECK(engine->submit({greedy(2, {1}, 1)}));
  CHECK(!engine->submit({greedy(3, {1}, 1)}));
  wire.open = true;
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
