#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "runtime/native/src/engine_stats.h"
#include "runtime/native/src/event_fd.h"
#include "runtime/native/src/log.h"
#include "runtime/native/src/request.h"
#include "runtime/native/src/sampling/logits_processor.h"
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

/// A request as the caller writes it; precast_request_t, where each field is explained.
struct Submission {
  std::uint64_t id = 0;
  std::vector<std::int32_t> prompt_token_ids;
  SamplingParams sampling;       ///< eos_token_ids are the engine's business
  std::int32_t max_tokens = 32;  ///< 0: as many as fit
  bool ignore_eos = false;
  std::uint32_t n = 1;
  float priority = 0.5F;
  std::int64_t deadline_ns = 0;
  std::string cache_salt;
  bool skip_block_reuse = false;
  bool use_logits_processor = false;
  std::vector<RetentionRange> retention;
};

/// What an engine does besides scheduling.
struct EngineSettings {
  bool audit = false;                          ///< run Scheduler::check_integrity after every step, and stop if it fails
  std::size_t max_queue_size = 0;              ///< sequences that may wait for their first step; 0: no limit
  std::size_t iteration_stats_size = 0;        ///< iterations whose statistics are kept
  KernelLevel kernel_level = KernelLevel::portable;      ///< of the sampler
  std::shared_ptr<LogitsProcessor> logits_processor{};  ///< for requests that ask for it; may be empty
  Log log{};
  std::function<void()> on_start{};  ///< the first thing that the engine's thread does, such as writing to the log
};

/// In-flight batching over one session.
///
///     submit, cancel  -> inbox -> [ engine's thread: step() again and again ] -> events -> wait
///
/// The engine's thread owns scheduler, sampler and session; everything else goes through the two queues, under one mutex.
/// Every public function may be called from any thread.
class Engine {
 public:
  /// Starts the thread.
  Engine(std::unique_ptr<Session> session, const SchedulerConfig& config, EngineLimits limits, EngineSettings settings);

  /// Shuts down and joins the thread.
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  /// Queues all of them, or throws Error(invalid_argument) and queues none. False: none, the queue is full.
  bool submit(std::vector<Submission> submissions);

  /// False: no unfinished request has this id.
  bool cancel(std::uint64_t id);

  /// Up to `capacity` events; waits up to `timeout_ns` (negative: without limit) for the first. Empty: the time is over.
  /// Throws Error(shut_down) when the engine is shut down and every event has been taken.
  std::vector<Event> wait(std::size_t capacity, std::int64_t timeout_ns);

  /// The same, one event after the other: gives each to `take` before it is forgotten, and returns how many were taken. A
  /// std::bad_alloc of `take` leaves its event in the queue; it is thrown on if it was the first. Calls `take` under the mutex.
  std::size_t wait(std::size_t capacity, std::int64_t timeout_ns, const std::function<void(Event&)>& take);

  /// Readable while wait would not block.
  int event_fd() const noexcept { return event_fd_.descriptor(); }

  /// Accepts no more requests and cancels the unfinished ones. Does not wait for the thread.
  void shutdown();

  EngineStats stats() const;

  /// Both give what there is since the last call, oldest first, to `take`, and forget it when that returns: where it throws,
  /// nothing is lost. Who reads waits for others who read, the engine's thread for nobody.
  void take_iteration_stats(const std::function<void(const std::list<IterationStats>&)>& take);
  void take_kv_events(const std::function<void(const std::list<KvEvent>&)>& take);

  void reset_prefix_cache();
  const EngineLimits& limits() const noexcept { return limits_; }

 private:
  struct InFlightStep {
    std::unique_ptr<ScheduledStep> step;  // at a fixed address: the session reads the batch until it is collected
    std::int64_t start_ns = 0;
  };
  struct Commands {
    std::deque<std::vector<std::shared_ptr<Request>>> submitted;
    std::unordered_set<std::uint64_t> cancelled;
    bool reset_prefix_cache = false;
    bool shut_down = false;
  };

  void run();
  bool accept_commands();
  Commands wait_for_commands();
  void step();
  void audit();
  void enqueue_steps();
  void collect_oldest_step();
  bool do_or_fail(const ScheduledStep& step, const std::function<void()>& work);
  std::vector<SamplingRow> rows_for_processor(const ScheduledStep& step) const;
  std::vector<SampledToken> sample(const ScheduledStep& step, const StepResult& result);
  void record(const ScheduledStep& step, std::int64_t start_ns);
  void publish();
  void count_unscheduled();
  void take_outbox() noexcept;
  void stop(const std::exception& why) noexcept;
  bool has_event();
  void make_next_end();
  template <typename T>
  void take_all(std::list<T>& kept, std::size_t capacity, const std::function<void(const std::list<T>&)>& take);
  std::vector<std::shared_ptr<Request>> make_requests(Submission submission) const;
  void check(const Submission& submission) const;

  const EngineLimits limits_;
  const EngineSettings settings_;
  const std::size_t num_blocks_;
  const std::size_t kv_events_size_;

  // The thread's own.
  // Oldest first, with room for max_in_flight() from the start. Before the session, which may read a step until it is
  // collected or destroyed.
  std::vector<InFlightStep> in_flight_;
  std::unique_ptr<Session> session_;
  Scheduler scheduler_;
  Sampler sampler_;
  std::list<Event> outbox_;    // events that publish() has not yet moved to events_: a list, for that needs no memory
  const Scheduler::Emit emit_ = [this](Event event) { outbox_.push_back(std::move(event)); };
  EngineStats counters_;       // stats_ follows at publish()
  std::list<IterationStats> new_iterations_;
  bool has_warned_of_preemption_ = false;

  std::mutex reading_;        // of who takes iterations_ or kv_events_; locked before mutex_
  mutable std::mutex mutex_;  // guards all below
  std::condition_variable inbox_changed_;
  std::condition_variable events_changed_;
  EventFd event_fd_;
  Commands inbox_;
  std::unordered_map<std::uint64_t, std::vector<std::uint32_t>> unfinished_;  // id -> its unfinished sequences
  std::size_t num_unscheduled_ = 0;  // sequences that have not yet been in a step
  std::list<Event> events_;
  EngineStats stats_;
  std::list<IterationStats> iterations_;
  std::list<KvEvent> kv_events_;
  bool shutting_down_ = false;
  bool stopped_ = false;  // the thread has published its last event; who is unfinished then ends with stop_error_
  // Made while there is memory for it. What is known to be something else takes its place.
  Error stop_error_{ErrorCode::resource_exhausted,
                    "the engine stopped, for there was no memory left for its own books: load it again with a smaller "
                    "kv_cache_bytes, max_batch_size or max_queue_size"};

  std::thread thread_;  // last: starts when everything else is there
};

}  // namespace precast
