#include "runtime/native/src/engine.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <iterator>
#include <new>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "runtime/native/src/concat.h"
#include "runtime/native/src/result_rows.h"

namespace precast {
namespace {

constexpr std::uint32_t max_sequences = 1024;
// What is added to the clock must not overflow it.
constexpr std::int64_t longest_wait_ns = std::int64_t{1} << 60;

std::int64_t now_ns() {
  // std::chrono::steady_clock is CLOCK_MONOTONIC on Linux.
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

Engine::Engine(std::unique_ptr<Session> session, const SchedulerConfig& config, EngineLimits limits,
               EngineSettings settings)
    : limits_(std::move(limits)),
      settings_(std::move(settings)),
      num_blocks_(static_cast<std::size_t>(config.kv.num_blocks)),
      kv_events_size_(config.kv.events_size),
      session_(std::move(session)),
      scheduler_(config),
      sampler_(settings_.kernel_level) {
  in_flight_.reserve(session_->max_in_flight());
  counters_.num_blocks = counters_.num_free_blocks = num_blocks_;
  counters_.tokens_per_block = config.kv.tokens_per_block;
  stats_ = counters_;
  std::ranges::move(scheduler_.take_kv_events(), std::back_inserter(kv_events_));
  thread_ = std::thread(&Engine::run, this);
}

Engine::~Engine() {
  shutdown();
  thread_.join();
}

// ----------------------------------------------------------------------------------------------- called by anyone

bool Engine::submit(std::vector<Submission> submissions) {
  std::unordered_map<std::uint64_t, std::vector<std::uint32_t>> added;
  std::size_t num_sequences = 0;
  for (const Submission& submission : submissions) {
    check(submission);
    std::vector<std::uint32_t> sequences(submission.n);
    std::iota(sequences.begin(), sequences.end(), 0U);
    num_sequences += sequences.size();
    if (!added.emplace(submission.id, std::move(sequences)).second) {
      throw Error(ErrorCode::invalid_argument, concat("request ", submission.id, " is in this call twice"));
    }
  }
  std::deque<std::vector<std::shared_ptr<Request>>> requests;
  for (Submission& submission : submissions) requests.push_back(make_requests(std::move(submission)));

  const std::lock_guard lock(mutex_);
  if (shutting_down_) throw Error(ErrorCode::shut_down, "the engine has been shut down and takes no requests");
  for (const auto& [id, sequences] : added) {
    if (unfinished_.contains(id)) {
      throw Error(ErrorCode::invalid_argument,
                  concat("request ", id, " is still running: an id is free again after its last event"));
    }
  }
  if (settings_.max_queue_size != 0 && num_unscheduled_ + num_sequences > settings_.max_queue_size) return false;
  num_unscheduled_ += num_sequences;
  unfinished_.merge(added);
  std::move(requests.begin(), requests.end(), std::back_inserter(inbox_.submitted));
  inbox_changed_.notify_one();
  return true;
}

void Engine::check(const Submission& submission) const {
  const auto refuse = [&](const auto&... parts) {
    throw Error(ErrorCode::invalid_argument, concat("request ", submission.id, ": ", parts...));
  };
  const auto& prompt = submission.prompt_token_ids;
  if (prompt.empty()) refuse("the prompt is empty; give at least one token, such as the beginning-of-sequence id");
  if (prompt.size() >= static_cast<std::size_t>(limits_.max_seq_len)) {
    refuse("the prompt has ", prompt.size(), " tokens, and max_seq_len ", limits_.max_seq_len,
           " must hold it and at least one more; shorten it, or load the engine with a larger max_seq_len");
  }
  for (std::size_t i = 0; i < prompt.size(); ++i) {
    if (prompt[i] < 0 || prompt[i] >= limits_.vocab_size) {
      refuse("prompt_token_ids[", i, "] is ", prompt[i], ", outside the vocabulary of ", limits_.vocab_size);
    }
  }
  if (submission.n < 1 || submission.n > max_sequences) refuse("n must be in [1, ", max_sequences, "], got ", submission.n);
  if (!std::isfinite(submission.priority)) refuse("priority must be finite, got ", submission.priority);
  if (submission.max_tokens < 0) refuse("max_tokens must be >= 0, got ", submission.max_tokens);
  if (submission.use_logits_processor && settings_.logits_processor == nullptr) {
    refuse("use_logits_processor is set, and the engine was loaded without a logits processor");
  }
  for (const RetentionRange& range : submission.retention) {
    if (range.priority > max_retention_priority || (range.end_token != 0 && range.end_token <= range.start_token)) {
      refuse("retention of tokens ", range.start_token, " to ", range.end_token, " with priority ", range.priority,
             ": the range must not be empty, and the priority at most ", max_retention_priority);
    }
  }
  try {
    SamplingParams sampling = submission.sampling;
    sampling.max_tokens = submission.max_tokens == 0 ? limits_.max_seq_len : submission.max_tokens;
    check_sampling_params(sampling, limits_.vocab_size);
  } catch (const Error& error) {
    refuse(error.what());
  }
}

std::vector<std::shared_ptr<Request>> Engine::make_requests(Submission submission) const {
  const auto group = std::make_shared<RequestGroup>(RequestGroup{submission.id, submission.n});
  auto first = std::make_shared<Request>();
  first->group = group;
  first->token_ids = std::move(submission.prompt_token_ids);
  first->num_prompt_tokens = first->token_ids.size();
  first->sampling = std::move(submission.sampling);
  const std::int32_t room = limits_.max_seq_len - static_cast<std::int32_t>(first->num_prompt_tokens);
  first->sampling.max_tokens = submission.max_tokens == 0 ? room : std::min(submission.max_tokens, room);
  if (!submission.ignore_eos) first->sampling.eos_token_ids = limits_.eos_token_ids;
  first->use_logits_processor = submission.use_logits_processor;
  first->priority = submission.priority;
  first->deadline_ns = submission.deadline_ns;
  first->arrival_ns = now_ns();
  first->kv = scheduler_.kv().open(submission.cache_salt, std::move(submission.retention), submission.skip_block_reuse);
  std::vector<std::shared_ptr<Request>> sequences{first};
  for (std::uint32_t i = 1; i < submission.n; ++i) {
    sequences.push_back(std::make_shared<Request>(*first));
    sequences.back()->sequence = i;
  }
  return sequences;
}

bool Engine::cancel(std::uint64_t id) {
  const std::lock_guard lock(mutex_);
  if (stopped_ || !unfinished_.contains(id)) return false;
  inbox_.cancelled.insert(id);
  inbox_changed_.notify_one();
  return true;
}

std::vector<Event> Engine::wait(std::size_t capacity, std::int64_t timeout_ns) {
  std::vector<Event> taken;
  wait(capacity, timeout_ns, [&taken](Event& event) { taken.push_back(std::move(event)); });
  return taken;
}

std::size_t Engine::wait(std::size_t capacity, std::int64_t timeout_ns, const std::function<void(Event&)>& take) {
  std::unique_lock lock(mutex_);
  const auto something = [this] { return !events_.empty() || stopped_; };
  if (timeout_ns < 0) {
    events_changed_.wait(lock, something);
  } else if (!events_changed_.wait_for(lock, std::chrono::nanoseconds(std::min(timeout_ns, longest_wait_ns)), something)) {
    return 0;
  }
  if (!has_event()) throw Error(ErrorCode::shut_down, "the engine has been shut down and every event was delivered");
  std::size_t num_taken = 0;
  for (; num_taken < capacity; ++num_taken) {
    try {
      if (!has_event()) break;
      take(events_.front());
    } catch (const std::bad_alloc&) {
      if (num_taken == 0) throw;
      break;  // the caller has those before it, and this one is the next
    }
    events_.pop_front();
  }
  event_fd_.set(something());
  return num_taken;
}

/// Under the mutex. Of an engine that has stopped, the events still to come are made one by one, as they are taken.
bool Engine::has_event() {
  if (events_.empty() && stopped_ && !unfinished_.empty()) make_next_end();
  return !events_.empty();
}

void Engine::make_next_end() {
  Event& event = events_.emplace_back();  // the only thing that may find no memory: then nothing has changed
  const auto next = unfinished_.begin();
  auto& [id, sequences] = *next;
  event.request_id = id;
  event.sequence = sequences.front();
  event.is_last = sequences.size() == 1;
  event.finish_reason = FinishReason::error;
  event.time_ns = now_ns();
  event.error = stop_error_;
  sequences.erase(sequences.begin());
  if (sequences.empty()) unfinished_.erase(next);
}

void Engine::shutdown() {
  const std::lock_guard lock(mutex_);
  shutting_down_ = true;
  inbox_.shut_down = true;
  inbox_changed_.notify_all();
}

EngineStats Engine::stats() const {
  const std::lock_guard lock(mutex_);
  return stats_;
}

namespace {

/// Keeps the latest `capacity` of both.
template <typename T>
void append_latest(std::list<T>& to, std::list<T>& from, std::size_t capacity) noexcept {
  to.splice(to.end(), from);
  while (to.size() > capacity) to.pop_front();
}

}  // namespace

template <typename T>
void Engine::take_all(std::list<T>& kept, std::size_t capacity, const std::function<void(const std::list<T>&)>& take) {
  const std::lock_guard one_reader(reading_);
  std::list<T> taken;
  {
    const std::lock_guard lock(mutex_);
    taken.swap(kept);
  }
  try {
    take(taken);  // which may be long: the engine's thread goes on meanwhile
  } catch (...) {
    const std::lock_guard lock(mutex_);
    append_latest(taken, kept, capacity);  // back to the place before what has come since
    kept.swap(taken);
    throw;
  }
}

void Engine::take_iteration_stats(const std::function<void(const std::list<IterationStats>&)>& take) {
  take_all(iterations_, settings_.iteration_stats_size, take);
}

void Engine::take_kv_events(const std::function<void(const std::list<KvEvent>&)>& take) {
  take_all(kv_events_, kv_events_size_, take);
}

void Engine::reset_prefix_cache() {
  const std::lock_guard lock(mutex_);
  inbox_.reset_prefix_cache = true;
  inbox_changed_.notify_one();
}

// -------------------------------------------------------------------------------------------- the engine's thread

void Engine::run() {
  try {
    if (settings_.on_start) settings_.on_start();
    while (accept_commands()) {
      step();
      publish();
    }
    if (settings_.audit) audit();
    publish();
  } catch (const std::exception& error) {
    stop(error);
  }
  const std::lock_guard lock(mutex_);
  stopped_ = true;
  event_fd_.set(true);
  events_changed_.notify_all();
}

/// Sleeps while there is nothing to do.
Engine::Commands Engine::wait_for_commands() {
  std::unique_lock lock(mutex_);
  const bool idle = !scheduler_.has_unfinished() && in_flight_.empty();
  const auto something = [this] {
    return inbox_.shut_down || inbox_.reset_prefix_cache || !inbox_.submitted.empty() || !inbox_.cancelled.empty();
  };
  if (idle) inbox_changed_.wait(lock, something);
  Commands commands = std::exchange(inbox_, {});
  inbox_.shut_down = commands.shut_down;  // once and for all
  return commands;
}

/// Does what callers have left. False: shut down, and no step is in flight.
bool Engine::accept_commands() {
  Commands commands = wait_for_commands();
  for (auto& sequences : commands.submitted) scheduler_.add(std::move(sequences));
  for (const std::uint64_t id : commands.cancelled) scheduler_.cancel(id, emit_);
  if (commands.reset_prefix_cache) scheduler_.reset_prefix_cache();
  scheduler_.expire(now_ns(), emit_);
  if (!commands.shut_down) return true;
  scheduler_.cancel_all(emit_);
  return !in_flight_.empty();
}

void Engine::step() {
  enqueue_steps();
  {
    // Who is in a step waits no more: the queue has room before the step is done.
    const std::lock_guard lock(mutex_);
    count_unscheduled();
  }
  if (!in_flight_.empty()) {
    collect_oldest_step();
  } else if (scheduler_.has_unfinished()) {
    throw std::logic_error(concat(scheduler_.num_waiting(), " requests wait, ", scheduler_.num_running(),
                                  " run, and none can advance"));
  }
  if (settings_.audit) audit();
}

/// A step whose audit fails tells nothing: requests that it ended, whom nobody would ask about again, end with the failure.
void Engine::audit() {
  try {
    scheduler_.check_integrity();
  } catch (const std::logic_error& error) {
    outbox_.clear();
    throw std::logic_error(concat("the audit after step ", counters_.steps, " failed: ", error.what()));
  }
}

void Engine::enqueue_steps() {
  while (in_flight_.size() < session_->max_in_flight()) {
    auto step = std::make_unique<ScheduledStep>(scheduler_.schedule(now_ns()));
    if (step->sequences.empty()) return;
    const std::int64_t start_ns = now_ns();
    const ScheduledStep& scheduled = *step;
    do_or_fail(scheduled, [&] {
      const std::vector<SamplingRow> rows = rows_for_processor(scheduled);
      session_->enqueue(scheduled.batch);
      in_flight_.push_back({std::move(step), start_ns});  // there is room: the session never has a step that we have not
      if (!rows.empty()) settings_.logits_processor->start(rows);  // it may work while the step is computed
    });
  }
}

void Engine::collect_oldest_step() {
  // Stays where it is until the session is done with it, also when that fails in a way that ends the engine.
  const InFlightStep& oldest = in_flight_.front();
  const ScheduledStep& step = *oldest.step;
  if (std::ranges::all_of(step.sequences, &ScheduledSequence::is_stale)) session_->cancel(step.batch.id);
  std::vector<SampledToken> tokens;
  const bool has_tokens = do_or_fail(step, [&] { tokens = sample(step, session_->collect(step.batch.id)); });
  // Should there be no memory for this, the books are half written: that ends the engine, not the step.
  if (has_tokens) scheduler_.update(step, tokens, emit_);
  record(step, oldest.start_ns);
  in_flight_.erase(in_flight_.begin());
}

/// An error of the session ends the requests of this step and nobody else's. False: there was one.
bool Engine::do_or_fail(const ScheduledStep& step, const std::function<void()>& work) {
  const auto fail = [&](const Error& error) {
    settings_.log.error("step ", step.batch.id, " of ", step.batch.num_sequences(), " sequences failed: ", error.what());
    scheduler_.fail(step, error, emit_);
    return false;
  };
  try {
    work();
    return true;
  } catch (const Error& error) {
    return fail(error);
  } catch (const std::bad_alloc&) {
    return fail(Error(ErrorCode::resource_exhausted,
                      concat("no memory for a step of ", step.batch.num_tokens(), " tokens and ", step.batch.num_sequences(),
                             " sequences; load the engine with a smaller max_num_tokens or kv_cache_bytes")));
  }
}

std::vector<SamplingRow> Engine::rows_for_processor(const ScheduledStep& step) const {
  std::vector<SamplingRow> rows;
  for (const ScheduledSequence& sequence : step.sequences) {
    if (sequence.wants_logits && sequence.request->use_logits_processor) rows.push_back(sequence.request->sampling_row());
  }
  return rows;
}

namespace {

/// Of a row of which the session has chosen none.
Error no_token_error(std::size_t position) {
  return Error(ErrorCode::internal,
               concat("the logits for position ", position, " hold NaN or no finite largest value: the weights or this ",
                      "prompt overflow; `precast verify` checks the engine's files"));
}

}  // namespace

/// One token for each sequence that wants logits: the session's own choice, or ours.
std::vector<SampledToken> Engine::sample(const ScheduledStep& step, const StepResult& result) {
  std::vector<SampledToken> tokens(step.batch.logit_rows.size());
  std::vector<SamplingRow> rows;
  std::vector<std::size_t> places;  // of the rows in tokens
  std::size_t next_place = 0;
  ResultRows result_rows(step.batch, result, static_cast<std::size_t>(limits_.vocab_size), session_->max_candidates());
  for (const ScheduledSequence& sequence : step.sequences) {
    if (!sequence.wants_logits) continue;
    const std::size_t place = next_place++;
    const ResultRow row = result_rows.next();
    if (sequence.is_stale()) continue;
    if (row.logits.empty() && row.candidates.ids.empty()) {
      tokens[place].token_id = row.chosen;
      if (row.chosen < 0) tokens[place].error = no_token_error(sequence.request->token_ids.size());
      continue;
    }
    rows.push_back(sequence.request->sampling_row());
    rows.back().logits = row.logits;
    rows.back().candidates = row.candidates;
    places.push_back(place);
  }
  std::vector<SampledToken> sampled = sampler_.sample(rows, settings_.logits_processor.get());
  for (std::size_t i = 0; i < places.size(); ++i) tokens[places[i]] = std::move(sampled[i]);
  return tokens;
}

// ------------------------------------------------------------------------------------------------------------ telling

void Engine::record(const ScheduledStep& step, std::int64_t start_ns) {
  const std::int64_t end_ns = now_ns();
  ++counters_.steps;
  counters_.last_step_ns = end_ns - start_ns;
  counters_.last_step_num_tokens = step.batch.num_tokens();
  counters_.last_step_num_sequences = step.batch.num_sequences();
  if (!has_warned_of_preemption_ && scheduler_.counters().num_preemptions > 0) {
    settings_.log.warning("requests are preempted and computed again: the ", num_blocks_, " blocks of the KV cache are too "
                          "few for what runs at once; give a larger kv_cache_bytes or a smaller max_batch_size");
    has_warned_of_preemption_ = true;
  }
  if (settings_.iteration_stats_size == 0) return;
  IterationStats iteration;
  iteration.timestamp_ns = end_ns;
  iteration.num_new_active_requests = step.num_first_scheduled;
  iteration.new_active_requests_queue_latency_ns = step.queue_time_ns;
  for (const ScheduledSequence& sequence : step.sequences) {
    ++(sequence.num_prompt_tokens > 0 ? iteration.num_context_requests : iteration.num_generation_requests);
    iteration.num_context_tokens += sequence.num_prompt_tokens;
  }
  new_iterations_.push_back(std::move(iteration));
}

/// Gives the events of a step to the callers, all at once, and the counters that belong to them.
void Engine::publish() {
  for (Event& event : outbox_) {
    event.time_ns = now_ns();
    ++(event.finish_reason == FinishReason::none ? counters_.output_tokens : counters_.num_completed_requests);
  }
  const SchedulerCounters& scheduled = scheduler_.counters();
  const KvCache& kv = scheduler_.kv();
  counters_.num_active_requests = scheduler_.num_running();
  counters_.num_queued_requests = scheduler_.num_waiting();
  counters_.num_paused_requests = scheduler_.num_paused();
  counters_.num_preemptions = scheduled.num_preemptions;
  counters_.prompt_tokens_computed = scheduled.prompt_tokens_computed;
  counters_.prompt_tokens_reused = scheduled.prompt_tokens_reused;
  counters_.num_free_blocks = static_cast<std::uint64_t>(kv.pool().num_free());
  counters_.num_cached_blocks = static_cast<std::uint64_t>(kv.pool().num_idle());
  counters_.allocated_blocks = kv.num_allocated();
  counters_.reused_blocks = kv.num_reused();
  counters_.missed_blocks = kv.num_missed();
  for (IterationStats& iteration : new_iterations_) iteration.totals = counters_;
  std::list<KvEvent> kv_events;
  std::ranges::move(scheduler_.take_kv_events(), std::back_inserter(kv_events));

  const std::lock_guard lock(mutex_);
  stats_ = counters_;
  count_unscheduled();
  append_latest(iterations_, new_iterations_, settings_.iteration_stats_size);
  append_latest(kv_events_, kv_events, kv_events_size_);
  take_outbox();
}

/// Under the mutex.
void Engine::count_unscheduled() {
  num_unscheduled_ = scheduler_.num_unscheduled();
  for (const auto& sequences : inbox_.submitted) num_unscheduled_ += sequences.size();
}

/// Under the mutex. Needs no memory: what was told in part could only be told twice afterwards.
void Engine::take_outbox() noexcept {
  if (outbox_.empty()) return;
  for (const Event& event : outbox_) {
    if (event.is_last) {
      unfinished_.erase(event.request_id);
      inbox_.cancelled.erase(event.request_id);  // too late for this one, and not meant for the next one of this id
    } else if (event.finish_reason != FinishReason::none) {
      std::erase(unfinished_.at(event.request_id), event.sequence);
    }
  }
  events_.splice(events_.end(), outbox_);
  event_fd_.set(true);
  events_changed_.notify_all();
}

/// After a defect of ours, such as a failed audit, or where memory has run out: nobody may wait for ever because of it. Needs
/// no memory; the ends of the unfinished, those queued behind the thread's back among them, are made by make_next_end.
void Engine::stop(const std::exception& why) noexcept {
  try {
    const bool is_defect = dynamic_cast<const std::bad_alloc*>(&why) == nullptr;
    if (is_defect) {
      stop_error_ = Error(ErrorCode::internal, concat("the engine stopped: ", why.what(),
                                                      "; please report this message, and load the engine again"));
    }
    settings_.log.error(stop_error_.what());
  } catch (const std::bad_alloc&) {
    // The log goes without it. Callers have what stop_error_ says.
  }
  const std::lock_guard lock(mutex_);
  shutting_down_ = true;
  take_outbox();
}

}  // namespace precast
