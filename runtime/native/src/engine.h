#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_set>
#include <vector>

#include "runtime/native/src/request.h"
#include "runtime/native/src/sampling/sampler.h"
#include "runtime/native/src/scheduler.h"
#include "runtime/native/src/session.h"

namespace precast {

/// What requests are checked against.
struct EngineLimits {
  std::int32_t vocab_size = 0;
  std::int32_t max_seq_len = 0;              ///< prompt and output together; the KV pool holds at least this many tokens
  std::vector<std::int32_t> eos_token_ids;   ///< end a request unless it ignores them
};

/// A request as the caller writes it.
struct Submission {
  std::uint64_t id = 0;
  std::vector<std::int32_t> prompt_token_ids;
  SamplingParams sampling;       ///< stop_token_ids: the caller's own
  std::int32_t max_tokens = 32;  ///< 0: as many as fit
  bool ignore_eos = false;
};

/// Counters of one moment.
struct EngineStats {
  std::uint64_t steps = 0;
  std::uint64_t num_active_requests = 0;
  std::uint64_t num_queued_requests = 0;
  std::uint64_t num_completed_requests = 0;
  std::uint64_t num_blocks = 0;
  std::uint64_t num_free_blocks = 0;
  std::uint64_t tokens_per_block = 0;
  std::uint64_t prompt_tokens_computed = 0;
  std::uint64_t output_tokens = 0;
  std::int64_t last_step_ns = 0;
  std::uint64_t last_step_num_tokens = 0;
  std::uint64_t last_step_num_sequences = 0;
};

/// In-flight batching over one session.
///
///     submit, cancel  -> inbox -> [ engine's thread: step() again and again ] -> events -> wait
///
/// The engine's thread owns scheduler, sampler and session; everything else goes through the two queues, under one mutex.
/// Every public function may be called from any thread.
class Engine {
 public:
  /// Starts the thread. `audit` runs Scheduler::check_integrity after every step (tests).
  Engine(std::unique_ptr<Session> session, const SchedulerConfig& config, EngineLimits limits, bool audit = false);

  /// Shuts down and joins the thread.
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  /// Queues all of them, or throws Error(invalid_argument) and queues none.
  void submit(std::vector<Submission> submissions);

  /// False: no unfinished request has this id.
  bool cancel(std::uint64_t id);

  /// Up to `capacity` events; waits up to `timeout_ns` (negative: without limit) for the first. Empty: the time is over.
  /// Throws Error(shut_down) when the engine is shut down and every event has been taken.
  std::vector<Event> wait(std::size_t capacity, std::int64_t timeout_ns);

  /// Accepts no more requests and cancels the unfinished ones. Does not wait for the thread.
  void shutdown();

  EngineStats stats() const;
  const EngineLimits& limits() const noexcept { return limits_; }

 private:
  struct InFlightStep {
    StepId id = 0;
    std::unique_ptr<ScheduledStep> step;  // at a fixed address: the session reads the batch until it is collected
    std::int64_t start_ns = 0;
  };

  void run();
  bool accept_commands();
  void step();
  void enqueue_steps();
  void collect_oldest_step();
  void do_or_fail(const ScheduledStep& step, const std::function<void()>& work);
  std::vector<SampledToken> sample(const ScheduledStep& step, const StepResult& result);
  void count(const InFlightStep& step);
  void publish();
  void stop(const Error& error);
  std::unique_ptr<Request> make_request(Submission submission) const;
  void check(const Submission& submission) const;

  const EngineLimits limits_;
  const bool audit_;

  // The thread's own.
  std::unique_ptr<Session> session_;
  Scheduler scheduler_;
  Sampler sampler_;
  std::deque<InFlightStep> in_flight_;
  std::vector<Event> outbox_;  // events that publish() has not yet moved to events_
  const std::function<void(Event)> emit_ = [this](Event event) { outbox_.push_back(std::move(event)); };
  EngineStats counters_;       // stats_ follows at publish()

  mutable std::mutex mutex_;  // guards all below
  std::condition_variable inbox_changed_;
  std::condition_variable events_changed_;
  std::deque<std::unique_ptr<Request>> submitted_;
  std::vector<std::uint64_t> cancelled_;
  std::unordered_set<std::uint64_t> unfinished_;
  std::deque<Event> events_;
  EngineStats stats_;
  bool shutting_down_ = false;
  bool stopped_ = false;  // the thread has published its last event

  std::thread thread_;  // last: starts when everything else is there
};

}  // namespace precast
