#include "runtime/native/src/scheduler.h"

#include <algorithm>
#include <stdexcept>

#include "runtime/native/src/concat.h"
#include "runtime/native/src/sampling/candidates.h"
#include "runtime/native/src/sampling/logit_edits.h"

namespace precast {

Scheduler::Scheduler(const SchedulerConfig& config) : config_(config), kv_(config.kv) {
  if (config.max_batch_size < 1 || config.max_num_tokens < config.max_batch_size || config.max_in_flight < 1) {
    throw std::logic_error(concat("scheduler limits that cannot work: max_batch_size ", config.max_batch_size,
                                  ", max_num_tokens ", config.max_num_tokens, ", max_in_flight ", config.max_in_flight));
  }
}

std::size_t Scheduler::peak_blocks(std::size_t num_tokens) const noexcept {
  return kv_.peak_blocks(num_tokens, config_.max_in_flight * config_.max_num_tokens);
}

void Scheduler::add(std::vector<std::shared_ptr<Request>> sequences) {
  const std::uint64_t id = sequences.front()->group->id;
  for (const auto& request : sequences) {
    const std::size_t peak = peak_blocks(request->max_length());
    if (peak > static_cast<std::size_t>(kv_.pool().num_blocks())) {
      throw std::logic_error(concat("request ", id, " needs ", peak, " blocks of a pool of ", kv_.pool().num_blocks()));
    }
    request->arrival = next_arrival_++;
    enter_queue(request);
  }
  if (sequences.front()->deadline_ns != 0) deadlines_.insert({sequences.front()->deadline_ns, id});
  by_id_[id] = std::move(sequences);
}

// ---------------------------------------------------------------------------------------------------------- deciding

ScheduledStep Scheduler::schedule(std::int64_t now_ns) {
  now_ns_ = now_ns;
  kv_.set_time(now_ns);
  paused_in_this_step_ = false;
  ScheduledStep step;
  step.batch.id = last_step_ + 1;
  step.batch.query_starts.push_back(0);
  const bool batch_is_over = running_.empty();
  Budget budget = new_budget();
  bool everybody_advanced = true;
  for (std::size_t index = 0; index < running_.size(); ++index) everybody_advanced &= advance(index, budget, step);
  // Who is waiting must not take blocks that somebody running could not get.
  const bool may_admit = config_.policy == CapacityPolicy::static_batch ? batch_is_over : everybody_advanced;
  if (may_admit && !paused_in_this_step_) admit(budget, step);
  fill_block_tables(step);
  if (step.sequences.empty()) return step;
  last_step_ = step.batch.id;
  in_flight_.push_back(last_step_);
  return step;
}

/// Whether the session's own choice, the largest of the raw logits, is this request's next token, so that it can be used
/// before it is known.
bool Scheduler::runs_ahead(const Request& request) const noexcept {
  const SamplingParams& sampling = request.sampling;
  return config_.session_chooses_tokens && !request.use_logits_processor && is_greedy(sampling) &&
         !changes_logits(sampling, request.num_output_tokens()) &&
         (sampling.num_logprobs < 0 || has_candidates_for(sampling));
}

/// Whether the most likely tokens that the session can give are enough where nothing edits the logits.
bool Scheduler::has_candidates_for(const SamplingParams& sampling) const noexcept {
  const auto num_needed = static_cast<std::size_t>(num_candidates_needed(sampling));
  return num_needed > 0 && num_needed <= config_.max_candidates;
}

/// The least that is enough to choose the request's next token: whole rows are what takes a device and its host longest.
Scheduler::RowNeeds Scheduler::row_needs(const Request& request) const {
  const SamplingParams& sampling = request.sampling;
  const SamplingRow row = request.sampling_row();
  if (row.wants_processor || LogitEdits::is_any_before_processor(row) || LogitEdits::is_any_penalty(row)) {
    return {.logits = true};
  }
  if (config_.session_chooses_tokens && is_greedy(sampling) && sampling.num_logprobs < 0) return {};
  if (has_candidates_for(sampling)) return {.num_candidates = num_candidates_needed(sampling)};
  return {.logits = true};
}

std::size_t Scheduler::num_pending_tokens(const Request& request) const noexcept {
  std::size_t known = request.token_ids.size();
  if (runs_ahead(request)) known += request.pending.size();
  // The last token of all is never computed.
  return std::min(known, request.max_length() - 1) - std::min(known, request.num_scheduled);
}

Scheduler::Budget Scheduler::new_budget() const {
  const auto needs_one = [this](const auto& request) { return num_pending_tokens(*request) == 1; };
  const auto num_ready = static_cast<std::size_t>(std::ranges::count_if(running_, needs_one));
  const std::size_t most = num_generating_in_a_step();
  return {.num_tokens = config_.max_num_tokens, .num_reserved = std::min(num_ready, most), .num_generating = most};
}

/// A request waits for its token before its next step. So that several steps can be in flight, each takes its share of the
/// requests that generate; where the session chooses tokens, nobody waits, and every step takes all.
std::size_t Scheduler::num_generating_in_a_step() const {
  if (config_.session_chooses_tokens || config_.max_in_flight == 1) return running_.size();
  const auto generates = [this](const auto& request) { return num_pending_tokens(*request) <= 1; };
  const auto count = static_cast<std::size_t>(std::ranges::count_if(running_, generates));
  return (count + config_.max_in_flight - 1) / config_.max_in_flight;
}

/// Schedules what the running request `index` can compute. False: blocks are missing.
bool Scheduler::advance(std::size_t index, Budget& budget, ScheduledStep& step) {
  const std::shared_ptr<Request> request = running_[index];
  const bool needs_one = num_pending_tokens(*request) == 1;
  if (needs_one && request->num_output_tokens() > 0) {
    if (budget.num_generating == 0) return true;  // in the next step
    --budget.num_generating;
  }
  const bool has_reservation = needs_one && budget.num_reserved > 0;
  if (has_reservation) --budget.num_reserved;
  kv_.leave_window(request->kv, request->num_computed);
  reuse(*request);
  const std::size_t num_tokens = choose_num_tokens(*request, budget);
  if (num_tokens == 0) return true;
  if (!make_room(index, request->num_scheduled + num_tokens)) return false;
  budget.has_prompt_chunk |= !has_reservation;
  budget.num_tokens -= num_tokens;
  describe(request, num_tokens, step);
  return true;
}

/// Takes what is cached behind the request's tokens. Not for the sake of one token: that must be computed in any case.
void Scheduler::reuse(Request& request) {
  if (num_pending_tokens(request) < 2 || request.num_scheduled % kv_.tokens_per_block() != 0) return;
  const bool in_flight = request.num_computed != request.num_scheduled;
  // A hit may leave a gap behind a window, and the window before the gap must then be given up.
  if (in_flight && std::ranges::any_of(config_.kv.windows, [](std::int64_t window) { return window != 0; })) return;
  const KvCache::Hit hit = kv_.find(request.kv, request.token_ids, request.num_scheduled);
  if (hit.num_blocks == 0) return;
  kv_.take(request.kv, hit);
  const std::size_t num_tokens = hit.num_blocks * kv_.tokens_per_block();
  const std::size_t prompt_left = request.num_prompt_tokens - std::min(request.num_prompt_tokens, request.num_scheduled);
  request.num_scheduled += num_tokens;
  if (!in_flight) {
    request.num_computed = request.num_scheduled;
    kv_.leave_window(request.kv, request.num_computed);
  }
  counters_.prompt_tokens_reused += std::min(prompt_left, num_tokens);
  if (request.num_output_tokens() == 0 && request.epoch == 0) request.num_cached_tokens += num_tokens;
}

std::size_t Scheduler::choose_num_tokens(const Request& request, const Budget& budget) const {
  const std::size_t pending = num_pending_tokens(request);
  const std::size_t left = budget.num_tokens - budget.num_reserved;
  if (pending <= left) return pending;
  // A chunk that ends within a block would make the rest of the block unfit for sharing. So only what could not advance
  // otherwise, the first prompt of a step, may end there.
  const std::size_t block = kv_.tokens_per_block();
  const std::size_t aligned_end = (request.num_scheduled + left) / block * block;
  if (aligned_end > request.num_scheduled) return aligned_end - request.num_scheduled;
  return budget.has_prompt_chunk ? 0 : left;
}

/// Blocks for the first `num_tokens` tokens of the running request `index`, at the cost of less important ones if the policy
/// allows it.
bool Scheduler::make_room(std::size_t index, std::size_t num_tokens) {
  const std::shared_ptr<Request> request = running_[index];
  const std::uint64_t epoch = request->epoch;
  while (!kv_.grow(request->kv, num_tokens)) {
    if (kv_.has_retiring()) return false;  // some are on their way: after the next collect
    if (config_.policy != CapacityPolicy::max_utilization) {
      throw std::logic_error(concat("no block left for request ", request->group->id, ", to which up to ",
                                    peak_blocks(request->max_length()), " were promised"));
    }
    pause(running_.back());
    if (request->epoch != epoch) return false;  // it was itself the least important one
  }
  return true;
}

void Scheduler::admit(Budget& budget, ScheduledStep& step) {
  const bool is_static = config_.policy == CapacityPolicy::static_batch;
  budget.num_reserved = 0;  // of requests that wait for a token in flight, for instance
  while (!waiting_.empty() && running_.size() < config_.max_batch_size && (is_static || budget.num_tokens > 0)) {
    const std::shared_ptr<Request> request = *waiting_.begin();
    if (!has_room_for(*request, kv_.find(request->kv, request->token_ids, 0))) return;
    leave_queue(request);
    if (request->first_scheduled_ns == 0) {
      request->first_scheduled_ns = now_ns_;
      ++step.num_first_scheduled;
      step.queue_time_ns += now_ns_ - request->arrival_ns;
    }
    const auto index = std::ranges::upper_bound(running_, request, MoreImportant()) - running_.begin();
    running_.insert(running_.begin() + index, request);
    if (!advance(static_cast<std::size_t>(index), budget, step)) return;
  }
}

bool Scheduler::has_room_for(Request& request, const KvCache::Hit& hit) const {
  const auto num_free = static_cast<std::size_t>(kv_.pool().num_free());
  if (config_.policy == CapacityPolicy::max_utilization) {
    return peak_blocks(request.token_ids.size() + 1) <= num_free + hit.num_shared;
  }
  return num_promised_blocks() + peak_blocks(request.max_length()) <= num_free + hit.num_shared_for_good;
}

/// Blocks that running requests may still ask for. A shared block covers the need of each sequence that holds it until its
/// end, but of one only where a window moves on: the others need a new one when they leave it, and it is not free then.
std::size_t Scheduler::num_promised_blocks() const {
  std::size_t sum = 0;
  for (const auto& request : running_) sum += peak_blocks(request->max_length()) - request->kv.num_held_for_good;
  return sum - kv_.num_window_blocks();
}

// --------------------------------------------------------------------------------------------------------- describing

void Scheduler::describe(const std::shared_ptr<Request>& request, std::size_t num_tokens, ScheduledStep& step) {
  const std::size_t start = request->num_scheduled;
  const std::size_t end = start + num_tokens;
  StepBatch& batch = step.batch;
  append_tokens(*request, num_tokens, batch);
  const bool wants_logits = end == request->token_ids.size() + (runs_ahead(*request) ? request->pending.size() : 0);
  if (wants_logits) {
    request->pending.push_back({batch.id, static_cast<std::int32_t>(batch.logit_rows.size())});
    batch.logit_rows.push_back(static_cast<std::int32_t>(batch.token_ids.size()) - 1);
    const RowNeeds needs = row_needs(*request);
    batch.needs_logits.push_back(needs.logits ? 1 : 0);
    batch.num_candidates.push_back(needs.num_candidates);
  }
  const std::size_t prompt_left = request->num_prompt_tokens - std::min(request->num_prompt_tokens, start);
  const std::size_t num_prompt_tokens = std::min(prompt_left, num_tokens);
  step.sequences.push_back({request, request->epoch, num_tokens, num_prompt_tokens, end, wants_logits});
  counters_.prompt_tokens_computed += num_prompt_tokens;
  request->num_scheduled = end;
  request->last_step = batch.id;
  kv_.store(request->kv, request->token_ids, end, request->num_computed, batch.id);
}

void Scheduler::append_tokens(const Request& request, std::size_t num_tokens, StepBatch& batch) const {
  for (std::size_t i = request.num_scheduled; i < request.num_scheduled + num_tokens; ++i) {
    if (i < request.token_ids.size()) {
      batch.token_ids.push_back(request.token_ids[i]);
      continue;
    }
    const PendingToken& source = request.pending.at(i - request.token_ids.size());
    batch.token_sources.push_back({static_cast<std::int32_t>(batch.token_ids.size()), source.row, source.step});
    batch.token_ids.push_back(-1);
  }
  batch.query_starts.push_back(static_cast<std::int32_t>(batch.token_ids.size()));
  batch.context_lengths.push_back(static_cast<std::int32_t>(request.num_scheduled + num_tokens));
}

void Scheduler::fill_block_tables(ScheduledStep& step) const {
  step.batch.block_tables.resize(config_.kv.windows.size());
  for (std::size_t group = 0; group < step.batch.block_tables.size(); ++group) {
    BlockTable& table = step.batch.block_tables[group];
    std::size_t width = 0;
    for (const auto& sequence : step.sequences) width = std::max(width, sequence.request->kv.tables[group].size());
    table.width = static_cast<std::int32_t>(width);
    table.blocks.reserve(width * step.sequences.size());
    for (const auto& sequence : step.sequences) {
      const auto& blocks = sequence.request->kv.tables[group];
      table.blocks.insert(table.blocks.end(), blocks.begin(), blocks.end());
      table.blocks.insert(table.blocks.end(), width - blocks.size(), -1);
    }
  }
}

// ---------------------------------------------------------------------------------------------------------- updating

void Scheduler::update(const ScheduledStep& step, std::span<const SampledToken> sampled, const Emit& emit) {
  std::size_t next = 0;
  for (const auto& sequence : step.sequences) {
    const SampledToken* token = sequence.wants_logits ? &sampled[next++] : nullptr;
    if (sequence.is_stale()) continue;
    Request& request = *sequence.request;
    request.num_computed = sequence.end;
    // Of a request that runs ahead, the tokens that were computed here may be known only now.
    kv_.store(request.kv, request.token_ids, request.num_computed, request.num_computed, 0);
    if (token == nullptr) continue;
    request.pending.pop_front();
    accept_token(sequence.request, *token, emit);
  }
  end_step(step.batch.id);
}

void Scheduler::fail(const ScheduledStep& step, const Error& error, const Emit& emit) {
  for (const auto& sequence : step.sequences) {
    if (sequence.is_stale()) continue;
    Event event;
    event.finish_reason = FinishReason::error;
    event.error = error;
    finish(sequence.request, std::move(event), emit);
  }
  const std::unordered_set<std::int32_t> lost = kv_.forget_since(step.batch.id);
  const auto holds_lost = [&lost](const auto& request) {
    return std::ranges::any_of(request->kv.tables, [&lost](const auto& table) {
      return std::ranges::any_of(table, [&lost](std::int32_t block) { return lost.contains(block); });
    });
  };
  std::vector<std::shared_ptr<Request>> misled;
  std::ranges::copy_if(running_, std::back_inserter(misled), holds_lost);
  for (const auto& request : misled) pause(request);
  end_step(step.batch.id);
}

/// A step that was refused ends before older ones that are in flight: their blocks must wait for them.
void Scheduler::end_step(std::uint64_t step) {
  std::erase(in_flight_, step);
  kv_.collected(in_flight_.empty() ? last_step_ : in_flight_.front() - 1);
}

void Scheduler::accept_token(const std::shared_ptr<Request>& request, const SampledToken& sampled, const Emit& emit) {
  Event end;
  if (sampled.error) {
    end.finish_reason = FinishReason::error;
    end.error = sampled.error;
    return finish(request, std::move(end), emit);
  }
  request->token_ids.push_back(sampled.token_id);
  Event token;
  token.request_id = request->group->id;
  token.sequence = request->sequence;
  token.token_id = sampled.token_id;
  token.logprobs = sampled.logprobs;
  emit(std::move(token));
  const SamplingParams& sampling = request->sampling;
  const auto is_in = [&sampled](const auto& ids) { return std::ranges::find(ids, sampled.token_id) != ids.end(); };
  const std::size_t num_output_tokens = request->num_output_tokens();
  if (num_output_tokens > static_cast<std::size_t>(sampling.min_tokens) &&
      (is_in(sampling.eos_token_ids) || is_in(sampling.stop_token_ids))) {
    end.finish_reason = FinishReason::stop;
    end.stop_token_id = sampled.token_id;
    finish(request, std::move(end), emit);
  } else if (num_output_tokens >= static_cast<std::size_t>(sampling.max_tokens)) {
    end.finish_reason = FinishReason::length;
    finish(request, std::move(end), emit);
  }
}

// -------------------------------------------------------------------------------------------------- pausing and ending

/// Back to the queue, without blocks. Tokens and results that are still on their way are nobody's.
void Scheduler::pause(const std::shared_ptr<Request>& request) {
  const auto place = std::ranges::find(running_, request);
  if (place == running_.end()) throw std::logic_error("a request is paused that does not run");
  kv_.retire(request->kv, request->last_step);
  request->num_scheduled = 0;
  request->num_computed = 0;
  request->pending.clear();
  ++request->epoch;
  ++request->num_preemptions;
  ++counters_.num_preemptions;
  paused_in_this_step_ = true;
  enter_queue(request);
  running_.erase(place);
}

void Scheduler::enter_queue(const std::shared_ptr<Request>& request) {
  waiting_.insert(request);
  ++(request->epoch > 0 ? num_paused_ : num_unscheduled_);
}

/// False: it does not wait.
bool Scheduler::leave_queue(const std::shared_ptr<Request>& request) {
  if (waiting_.erase(request) == 0) return false;
  --(request->epoch > 0 ? num_paused_ : num_unscheduled_);
  return true;
}

void Scheduler::finish(std::shared_ptr<Request> request, Event event, const Emit& emit) {
  if (!leave_queue(request)) running_.erase(std::ranges::find(running_, request));
  kv_.retire(request->kv, request->last_step);
  request->finish_reason = event.finish_reason;
  RequestGroup& group = *request->group;
  event.request_id = group.id;
  event.sequence = request->sequence;
  event.is_last = --group.num_unfinished == 0;
  event.num_prompt_tokens = static_cast<std::uint32_t>(request->num_prompt_tokens);
  event.num_output_tokens = static_cast<std::uint32_t>(request->num_output_tokens());
  event.num_cached_tokens = static_cast<std::uint32_t>(request->num_cached_tokens);
  event.num_preemptions = request->num_preemptions;
  event.first_scheduled_ns = request->first_scheduled_ns;
  if (event.is_last) {
    deadlines_.erase({request->deadline_ns, group.id});
    by_id_.erase(group.id);
  }
  emit(std::move(event));
}

void Scheduler::end_early(std::uint64_t id, FinishReason reason, const Emit& emit) {
  const auto sequences = by_id_.at(id);  // a copy: finish takes the last one out
  for (const auto& request : sequences) {
    if (request->finished()) continue;
    Event event;
    event.finish_reason = reason;
    finish(request, std::move(event), emit);
  }
}

bool Scheduler::cancel(std::uint64_t id, const Emit& emit) {
  if (!by_id_.contains(id)) return false;
  end_early(id, FinishReason::cancelled, emit);
  return true;
}

void Scheduler::cancel_all(const Emit& emit) {
  while (!by_id_.empty()) end_early(by_id_.begin()->first, FinishReason::cancelled, emit);
}

void Scheduler::expire(std::int64_t now_ns, const Emit& emit) {
  while (!deadlines_.empty() && deadlines_.begin()->first <= now_ns) {
    end_early(deadlines_.begin()->second, FinishReason::timeout, emit);
  }
}

// -------------------------------------------------------------------------------------------------------------- audits

void Scheduler::check_integrity() const {
  std::vector<const KvSequence*> sequences;
  std::size_t num_unfinished = 0;
  for (const auto& [id, group] : by_id_) {
    for (const auto& request : group) {
      if (request->finished()) continue;
      ++num_unfinished;
      sequences.push_back(&request->kv);
      const std::size_t peak = peak_blocks(request->max_length());
      const std::size_t known = request->token_ids.size() + request->pending.size();
      if (request->kv.num_held > peak || request->num_computed > request->num_scheduled || request->num_scheduled > known) {
        throw std::logic_error(concat("request ", id, " has more than was planned for it"));
      }
      if (waiting_.contains(request) && request->kv.num_held != 0) {
        throw std::logic_error(concat("request ", id, " waits and holds blocks"));
      }
    }
  }
  if (num_unfinished != waiting_.size() + running_.size()) throw std::logic_error("requests do not add up");
  if (!std::ranges::is_sorted(running_, MoreImportant())) throw std::logic_error("running requests are out of order");
  kv_.check_integrity(sequences);
  check_promises();
}

/// What is promised must be free, or on its way.
void Scheduler::check_promises() const {
  if (config_.policy == CapacityPolicy::max_utilization) return;
  std::unordered_set<std::int32_t> held;
  for (const auto& request : running_) {
    for (const auto& table : request->kv.tables) held.insert(table.begin(), table.end());
  }
  held.erase(-1);
  const std::size_t available = static_cast<std::size_t>(kv_.pool().num_blocks()) - held.size();
  if (num_promised_blocks() > available) {
    throw std::logic_error(concat(num_promised_blocks(), " blocks are promised and ", available, " are not held"));
  }
}

}  // namespace precast
