#include "runtime/native/src/engine.h"

#include <algorithm>
#include <chrono>
#include <iterator>
#include <new>
#include <utility>

#include "runtime/native/src/concat.h"

namespace precast {
namespace {

std::int64_t now_ns() {
  // std::chrono::steady_clock is CLOCK_MONOTONIC on Linux.
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

Engine::Engine(std::unique_ptr<Session> session, const SchedulerConfig& config, EngineLimits limits, bool audit)
    : limits_(std::move(limits)), audit_(audit), session_(std::move(session)), scheduler_(config) {
  counters_.num_blocks = counters_.num_free_blocks = static_cast<std::uint64_t>(config.num_blocks);
  counters_.tokens_per_block = config.tokens_per_block;
  stats_ = counters_;
  thread_ = std::thread(&Engine::run, this);
}

Engine::~Engine() {
  shutdown();
  thread_.join();
}

// ----------------------------------------------------------------------------------------------- called by anyone

void Engine::submit(std::vector<Submission> submissions) {
  std::unordered_set<std::uint64_t> ids;
  for (const Submission& submission : submissions) {
    check(submission);
    if (!ids.insert(submission.id).second) {
      throw Error(ErrorCode::invalid_argument, concat("request ", submission.id, " is in this call twice"));
    }
  }
  std::deque<std::unique_ptr<Request>> requests;
  for (Submission& submission : submissions) requests.push_back(make_request(std::move(submission)));

  const std::lock_guard lock(mutex_);
  if (shutting_down_) throw Error(ErrorCode::shut_down, "the engine has been shut down and takes no requests");
  for (const std::uint64_t id : ids) {
    if (unfinished_.contains(id)) {
      throw Error(ErrorCode::invalid_argument,
                  concat("request ", id, " is still running: an id is free again after its finished event"));
    }
  }
  unfinished_.merge(ids);
  std::move(requests.begin(), requests.end(), std::back_inserter(submitted_));
  inbox_changed_.notify_one();
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
  try {
    check_sampling_params(submission.sampling, limits_.vocab_size);
  } catch (const Error& error) {
    refuse(error.what());
  }
  if (submission.max_tokens < 0) refuse("max_tokens must be >= 0, got ", submission.max_tokens);
}

std::unique_ptr<Request> Engine::make_request(Submission submission) const {
  auto request = std::make_unique<Request>();
  request->id = submission.id;
  request->token_ids = std::move(submission.prompt_token_ids);
  request->num_prompt_tokens = request->token_ids.size();
  request->sampling = std::move(submission.sampling);
  const std::int32_t room = limits_.max_seq_len - static_cast<std::int32_t>(request->num_prompt_tokens);
  request->sampling.max_tokens = submission.max_tokens == 0 ? room : std::min(submission.max_tokens, room);
  if (!submission.ignore_eos) request->sampling.eos_token_ids = limits_.eos_token_ids;
  return request;
}

bool Engine::cancel(std::uint64_t id) {
  const std::lock_guard lock(mutex_);
  if (!unfinished_.contains(id)) return false;
  cancelled_.push_back(id);
  inbox_changed_.notify_one();
  return true;
}

std::vector<Event> Engine::wait(std::size_t capacity, std::int64_t timeout_ns) {
  std::unique_lock lock(mutex_);
  const auto something = [this] { return !events_.empty() || stopped_; };
  if (timeout_ns < 0) {
    events_changed_.wait(lock, something);
  } else if (!events_changed_.wait_for(lock, std::chrono::nanoseconds(timeout_ns), something)) {
    return {};
  }
  if (events_.empty()) throw Error(ErrorCode::shut_down, "the engine has been shut down and every event was delivered");
  std::vector<Event> taken;
  const auto end = events_.begin() + static_cast<std::ptrdiff_t>(std::min(capacity, events_.size()));
  std::move(events_.begin(), end, std::back_inserter(taken));
  events_.erase(events_.begin(), end);
  return taken;
}

void Engine::shutdown() {
  const std::lock_guard lock(mutex_);
  shutting_down_ = true;
  inbox_changed_.notify_all();
}

EngineStats Engine::stats() const {
  const std::lock_guard lock(mutex_);
  return stats_;
}

// -------------------------------------------------------------------------------------------- the engine's thread

void Engine::run() {
  try {
    while (accept_commands()) {
      step();
      publish();
    }
    publish();
  } catch (const std::exception& error) {
    // A defect of ours, such as a failed audit: nobody may wait for ever because of it.
    stop(Error(ErrorCode::internal, concat("the engine stopped: ", error.what())));
  }
  const std::lock_guard lock(mutex_);
  stopped_ = true;
  events_changed_.notify_all();
}

/// Takes what callers have left, and sleeps while there is nothing to do. False: shut down, and no step is in flight.
bool Engine::accept_commands() {
  std::deque<std::unique_ptr<Request>> submitted;
  std::vector<std::uint64_t> cancelled;
  bool shutting_down = false;
  {
    std::unique_lock lock(mutex_);
    const bool idle = !scheduler_.has_unfinished() && in_flight_.empty();
    const auto something = [this] { return shutting_down_ || !submitted_.empty() || !cancelled_.empty(); };
    if (idle) inbox_changed_.wait(lock, something);
    submitted.swap(submitted_);
    cancelled.swap(cancelled_);
    shutting_down = shutting_down_;
  }
  for (auto& request : submitted) scheduler_.add(std::move(request));
  for (const std::uint64_t id : cancelled) scheduler_.cancel(id, emit_);
  if (!shutting_down) return true;
  scheduler_.cancel_all(emit_);
  return !in_flight_.empty();
}

void Engine::step() {
  enqueue_steps();
  if (!in_flight_.empty()) collect_oldest_step();
  if (audit_) scheduler_.check_integrity();
}

void Engine::enqueue_steps() {
  while (in_flight_.size() < session_->max_in_flight()) {
    auto step = std::make_unique<ScheduledStep>(scheduler_.schedule());
    if (step->sequences.empty()) return;
    const std::int64_t start_ns = now_ns();
    do_or_fail(*step, [&] {
      const StepId id = session_->enqueue(step->batch);
      in_flight_.push_back({id, std::move(step), start_ns});
    });
  }
}

void Engine::collect_oldest_step() {
  const InFlightStep oldest = std::move(in_flight_.front());
  in_flight_.pop_front();
  count(oldest);  // before update, which may free the requests that the step points to
  do_or_fail(*oldest.step, [&] {
    const StepResult result = session_->collect(oldest.id);
    scheduler_.update(*oldest.step, sample(*oldest.step, result), emit_);
  });
  counters_.last_step_ns = now_ns() - oldest.start_ns;
}

/// An error of the session ends the requests of this step and nobody else's.
void Engine::do_or_fail(const ScheduledStep& step, const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& error) {
    scheduler_.fail(step, error, emit_);
  } catch (const std::bad_alloc&) {
    scheduler_.fail(step, Error(ErrorCode::resource_exhausted,
                                concat("no memory for a step of ", step.batch.num_tokens(), " tokens and ",
                                       step.batch.num_sequences(), " sequences; load the engine with a smaller "
                                       "max_num_tokens or kv_cache_bytes")), emit_);
  }
}

std::vector<SampledToken> Engine::sample(const ScheduledStep& step, const StepResult& result) {
  const auto vocab_size = static_cast<std::size_t>(limits_.vocab_size);
  std::vector<SamplingRow> rows;
  std::vector<std::size_t> indices;  // of the rows among the sequences that want logits
  std::size_t num_rows = 0;
  for (const ScheduledSequence& sequence : step.sequences) {
    if (!sequence.wants_logits) continue;
    const std::size_t index = num_rows++;
    const Request& request = *sequence.request;
    if (request.finished()) continue;
    rows.push_back({.logits = result.logits.subspan(index * vocab_size, vocab_size),
                    .params = &request.sampling,
                    .token_ids = request.token_ids,
                    .num_prompt_tokens = request.num_prompt_tokens,
                    .request_id = request.id});
    indices.push_back(index);
  }
  std::vector<SampledToken> tokens = sampler_.sample(rows);
  std::vector<SampledToken> sampled(num_rows);
  for (std::size_t i = 0; i < rows.size(); ++i) sampled[indices[i]] = std::move(tokens[i]);
  return sampled;
}

void Engine::count(const InFlightStep& step) {
  ++counters_.steps;
  counters_.last_step_num_tokens = step.step->batch.num_tokens();
  counters_.last_step_num_sequences = step.step->batch.num_sequences();
  for (const ScheduledSequence& sequence : step.step->sequences) {
    counters_.prompt_tokens_computed += sequence.num_prompt_tokens;
  }
}

/// Gives the events of a step to the callers, all at once, and the counters that belong to them.
void Engine::publish() {
  for (Event& event : outbox_) {
    event.time_ns = now_ns();
    ++(event.finish_reason == FinishReason::none ? counters_.output_tokens : counters_.num_completed_requests);
  }
  counters_.num_active_requests = scheduler_.num_running();
  counters_.num_queued_requests = scheduler_.num_waiting();
  counters_.num_free_blocks = static_cast<std::uint64_t>(scheduler_.pool().num_free());
  const std::lock_guard lock(mutex_);
  stats_ = counters_;
  if (outbox_.empty()) return;
  for (Event& event : outbox_) {
    if (event.finish_reason != FinishReason::none) unfinished_.erase(event.request_id);
    events_.push_back(std::move(event));
  }
  outbox_.clear();
  events_changed_.notify_all();
}

/// Ends every request with `error`; those already queued behind the thread's back too.
void Engine::stop(const Error& error) {
  const std::lock_guard lock(mutex_);
  shutting_down_ = true;
  for (Event& event : outbox_) {
    if (event.finish_reason != FinishReason::none) unfinished_.erase(event.request_id);
    events_.push_back(std::move(event));
  }
  for (const std::uint64_t id : unfinished_) {
    Event event;
    event.request_id = id;
    event.finish_reason = FinishReason::error;
    event.time_ns = now_ns();
    event.error = error;
    events_.push_back(std::move(event));
  }
  unfinished_.clear();
}

}  // namespace precast
