// An engine around a session with two steps in flight that is late, breaks down, or runs out of memory when a test says so.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <new>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "runtime/native/src/engine.h"
#include "tests/native/check.h"
#include "tests/native/failing_memory.h"
#include "tests/native/waiting.h"

namespace precast::test {

using Ids = std::vector<std::int32_t>;

constexpr std::int32_t late_vocab_size = 50;

/// When the engine's thread runs out of memory: behind so many allocations after the call of enqueue or collect for step
/// `step`.
struct Hunger {
  enum class Call { enqueue, collect };

  Call call;
  std::uint64_t step;
  std::size_t num_left;
  Failing failing;
};

/// What a test and its session say to each other, from two threads.
struct Wire {
  Gate gate{true};                             // steps are collected
  std::atomic<int> num_collecting = 0;         // calls of collect
  std::atomic<int> calls_until_defect = -1;    // of enqueue and collect together; below 0: never
  bool defect_is_bad_alloc = false;
  std::optional<Hunger> hunger;
  std::atomic<std::int64_t> sum_at_end = -1;   // of the tokens in steps that were never collected
  std::atomic<int> num_spoilt = 0;             // steps that were something else when they were collected, or at the end
};

/// Token t is followed by t + 1; up to two steps in flight.
class LateSession final : public Session {
 public:
  explicit LateSession(Wire& wire) : wire_(wire) {}

  /// As a device would that is still at work.
  ~LateSession() override {
    std::int64_t sum = 0;
    for (const Step& step : in_flight_) {
      sum += sum_of(*step.batch);
      look_at(step);
    }
    wire_.sum_at_end = sum;
  }
  LateSession(const LateSession&) = delete;
  LateSession& operator=(const LateSession&) = delete;

  std::size_t max_in_flight() const noexcept override { return 2; }

  void enqueue(const StepBatch& batch) override {
    break_down();
    in_flight_.push_back({&batch, batch.id, sum_of(batch)});
    starve(Hunger::Call::enqueue, batch.id);
  }

  StepResult collect(std::uint64_t step) override {
    ++wire_.num_collecting;
    wire_.gate.pass();
    if (!wire_.defect_is_bad_alloc) break_down();  // with the step still in its hands
    look_at(in_flight_.front());
    const StepBatch& batch = *in_flight_.front().batch;
    CHECK_EQ(batch.id, step);
    in_flight_.pop_front();
    if (wire_.defect_is_bad_alloc) break_down();  // a step that has failed is over
    logits_.assign(batch.logit_rows.size() * late_vocab_size, 0.0F);
    for (std::size_t row = 0; row < batch.logit_rows.size(); ++row) {
      const std::int32_t token = batch.token_ids[static_cast<std::size_t>(batch.logit_rows[row])];
      logits_[row * late_vocab_size + static_cast<std::size_t>((token + 1) % late_vocab_size)] = 10.0F;
    }
    starve(Hunger::Call::collect, step);
    return {.logits = logits_, .token_ids = {}};
  }

 private:
  struct Step {
    const StepBatch* batch;
    std::uint64_t id;
    std::int64_t sum;
  };

  static std::int64_t sum_of(const StepBatch& batch) {
    return std::accumulate(batch.token_ids.begin(), batch.token_ids.end(), std::int64_t{0});
  }

  /// A step stays what it was for as long as the session has it.
  void look_at(const Step& step) {
    if (step.batch->id != step.id || sum_of(*step.batch) != step.sum) ++wire_.num_spoilt;
  }

  void break_down() {
    if (wire_.calls_until_defect < 0 || wire_.calls_until_defect-- > 0) return;
    if (wire_.defect_is_bad_alloc) throw std::bad_alloc();
    throw std::logic_error("a planted defect");
  }

  void starve(Hunger::Call call, std::uint64_t step) {
    if (!wire_.hunger || wire_.hunger->call != call || wire_.hunger->step != step) return;
    fail_allocations(wire_.hunger->num_left, wire_.hunger->failing);
  }

  Wire& wire_;
  std::deque<Step> in_flight_;
  std::vector<float> logits_;
};

inline std::unique_ptr<Engine> make_engine(Wire& wire, std::size_t max_queue_size = 0) {
  SchedulerConfig config{.max_batch_size = 4, .max_num_tokens = 8, .max_in_flight = 2,
                         .kv = {.tokens_per_block = 4, .num_blocks = 64, .events_size = 100}};
  EngineSettings settings;
  settings.audit = true;
  settings.max_queue_size = max_queue_size;
  settings.iteration_stats_size = 100;
  const EngineLimits limits{.vocab_size = late_vocab_size, .max_seq_len = 64, .eos_token_ids = {}};
  return std::make_unique<Engine>(std::make_unique<LateSession>(wire), config, limits, settings);
}

inline Submission greedy(std::uint64_t id, Ids prompt, std::int32_t max_tokens, std::uint32_t n = 1) {
  Submission submission;
  submission.id = id;
  submission.prompt_token_ids = std::move(prompt);
  submission.max_tokens = max_tokens;
  submission.sampling.temperature = 0.0F;
  submission.n = n;
  return submission;
}

/// Until `count` sequences have ended.
inline std::vector<Event> wait_for_ends(Engine& engine, std::size_t count) {
  std::vector<Event> events;
  while (count > 0) {
    std::vector<Event> some = engine.wait(64, patience_ns);
    CHECK(!some.empty());
    for (Event& event : some) {
      count -= event.finish_reason != FinishReason::none;
      events.push_back(std::move(event));
    }
  }
  return events;
}

/// Every sequence ends once, and is_last is said once, by the last of them. Before that its tokens are one up from each other.
inline void check_ends(const std::vector<Event>& events, std::size_t num_requests, std::uint32_t n) {
  std::map<std::pair<std::uint64_t, std::uint32_t>, int> ends;
  std::map<std::pair<std::uint64_t, std::uint32_t>, std::int32_t> last_tokens;
  std::map<std::uint64_t, std::uint32_t> num_ends;
  for (const Event& event : events) {
    const std::pair sequence(event.request_id, event.sequence);
    if (event.finish_reason != FinishReason::none) {
      CHECK_EQ(++ends[sequence], 1);
      CHECK_EQ(event.is_last, ++num_ends[event.request_id] == n);
      continue;
    }
    CHECK_EQ(ends[sequence], 0);
    const auto before = last_tokens.find(sequence);
    if (before != last_tokens.end()) CHECK_EQ(event.token_id, before->second + 1);
    last_tokens[sequence] = event.token_id;
  }
  CHECK_EQ(ends.size(), num_requests * n);
}

}  // namespace precast::test
