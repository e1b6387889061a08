#include "runtime/native/src/scheduler.h"

#include <algorithm>
#include <iterator>
#include <stdexcept>
#include <unordered_set>
#include <utility>

#include "runtime/native/src/concat.h"

namespace precast {

Scheduler::Scheduler(const SchedulerConfig& config) : config_(config), pool_(config.num_blocks) {
  if (config.max_batch_size < 1 || config.tokens_per_block < 1 || config.max_num_tokens < config.max_batch_size) {
    throw std::logic_error(concat("scheduler limits that cannot work: max_batch_size ", config.max_batch_size,
                                  ", max_num_tokens ", config.max_num_tokens, ", tokens_per_block ",
                                  config.tokens_per_block));
  }
}

std::size_t Scheduler::blocks_needed(std::size_t num_tokens) const noexcept {
  return (num_tokens + config_.tokens_per_block - 1) / config_.tokens_per_block;
}

void Scheduler::add(std::unique_ptr<Request> request) {
  const std::size_t max_tokens = request->num_prompt_tokens + static_cast<std::size_t>(request->sampling.max_tokens);
  request->num_reserved_blocks = blocks_needed(max_tokens);
  if (request->num_reserved_blocks > static_cast<std::size_t>(pool_.num_blocks())) {
    throw std::logic_error(concat("request ", request->id, " needs ", request->num_reserved_blocks,
                                  " blocks of a pool of ", pool_.num_blocks()));
  }
  waiting_.push_back(std::move(request));
}

// ---------------------------------------------------------------------------------------------------------- deciding

ScheduledStep Scheduler::schedule() {
  ScheduledStep step;
  step.batch.query_starts.push_back(0);
  admit();
  std::size_t budget = config_.max_num_tokens;
  // Two rounds over the running requests: those that need one token, then those with more of a prompt to compute.
  for (const bool single_token : {true, false}) {
    for (const auto& request : running_) {
      const std::size_t pending = request->token_ids.size() - request->num_scheduled;
      if (pending == 0 || (pending == 1) != single_token || budget == 0) continue;
      const std::size_t num_tokens = std::min(pending, budget);
      schedule_tokens(*request, num_tokens, step);
      budget -= num_tokens;
    }
  }
  fill_block_tables(step);
  return step;
}

void Scheduler::admit() {
  const auto num_blocks = static_cast<std::size_t>(pool_.num_blocks());
  while (!waiting_.empty() && running_.size() < config_.max_batch_size) {
    // The head of the queue holds back those behind it, also smaller ones: else a large request could wait for ever.
    if (num_reserved_blocks_ + waiting_.front()->num_reserved_blocks > num_blocks) return;
    num_reserved_blocks_ += waiting_.front()->num_reserved_blocks;
    running_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
  }
}

void Scheduler::schedule_tokens(Request& request, std::size_t num_tokens, ScheduledStep& step) {
  const std::size_t end = request.num_scheduled + num_tokens;
  const std::size_t num_blocks = blocks_needed(end);
  if (num_blocks > request.blocks.size() && !pool_.allocate(num_blocks - request.blocks.size(), request.blocks)) {
    throw std::logic_error(concat("no block left for request ", request.id, " although ", request.num_reserved_blocks,
                                  " were reserved for it"));
  }
  append_tokens(request, num_tokens, step.batch);
  const bool wants_logits = end == request.token_ids.size();
  if (wants_logits) step.batch.logit_rows.push_back(static_cast<std::int32_t>(step.batch.token_ids.size()) - 1);
  const std::size_t prompt_left = request.num_prompt_tokens - std::min(request.num_prompt_tokens, request.num_scheduled);
  step.sequences.push_back({&request, num_tokens, std::min(prompt_left, num_tokens), wants_logits});
  request.num_scheduled = end;
  ++request.num_steps_in_flight;
}

void Scheduler::append_tokens(const Request& request, std::size_t num_tokens, StepBatch& batch) const {
  const auto first = request.token_ids.begin() + static_cast<std::ptrdiff_t>(request.num_scheduled);
  batch.token_ids.insert(batch.token_ids.end(), first, first + static_cast<std::ptrdiff_t>(num_tokens));
  batch.query_starts.push_back(static_cast<std::int32_t>(batch.token_ids.size()));
  batch.context_lengths.push_back(static_cast<std::int32_t>(request.num_scheduled + num_tokens));
}

void Scheduler::fill_block_tables(ScheduledStep& step) const {
  std::size_t width = 0;
  for (const auto& sequence : step.sequences) width = std::max(width, sequence.request->blocks.size());
  BlockTable& table = step.batch.block_tables.emplace_back();
  table.width = static_cast<std::int32_t>(width);
  table.blocks.reserve(width * step.sequences.size());
  for (const auto& sequence : step.sequences) {
    const auto& blocks = sequence.request->blocks;
    table.blocks.insert(table.blocks.end(), blocks.begin(), blocks.end());
    table.blocks.insert(table.blocks.end(), width - blocks.size(), -1);
  }
}

// ---------------------------------------------------------------------------------------------------------- updating

void Scheduler::update(const ScheduledStep& step, std::span<const SampledToken> sampled,
                       const std::function<void(Event)>& emit) {
  std::size_t next = 0;
  for (const auto& sequence : step.sequences) {
    const SampledToken* token = sequence.wants_logits ? &sampled[next++] : nullptr;
    if (sequence.request->finished()) continue;
    sequence.request->num_computed += sequence.num_tokens;
    if (token != nullptr) accept_token(*sequence.request, *token, emit);
  }
  finish_step(step);
}

void Scheduler::fail(const ScheduledStep& step, const Error& error, const std::function<void(Event)>& emit) {
  for (const auto& sequence : step.sequences) {
    if (sequence.request->finished()) continue;
    Event event;
    event.finish_reason = FinishReason::error;
    event.error = error;
    finish(*sequence.request, std::move(event), emit);
  }
  finish_step(step);
}

void Scheduler::accept_token(Request& request, const SampledToken& sampled, const std::function<void(Event)>& emit) {
  Event end;
  if (sampled.error) {
    end.finish_reason = FinishReason::error;
    end.error = sampled.error;
    return finish(request, std::move(end), emit);
  }
  request.token_ids.push_back(sampled.token_id);
  Event token;
  token.request_id = request.id;
  token.token_id = sampled.token_id;
  emit(std::move(token));
  const auto& stops = request.sampling.stop_token_ids;
  if (std::find(stops.begin(), stops.end(), sampled.token_id) != stops.end()) {
    end.finish_reason = FinishReason::stop;
    end.stop_token_id = sampled.token_id;
    finish(request, std::move(end), emit);
  } else if (request.num_output_tokens() >= static_cast<std::size_t>(request.sampling.max_tokens)) {
    end.finish_reason = FinishReason::length;
    finish(request, std::move(end), emit);
  }
}

// -------------------------------------------------------------------------------------------------------------- ending

Request* Scheduler::find_unfinished(std::uint64_t id) {
  const auto matches = [id](const auto& request) { return request->id == id && !request->finished(); };
  const auto running = std::find_if(running_.begin(), running_.end(), matches);
  if (running != running_.end()) return running->get();
  const auto waiting = std::find_if(waiting_.begin(), waiting_.end(), matches);
  return waiting != waiting_.end() ? waiting->get() : nullptr;
}

bool Scheduler::cancel(std::uint64_t id, const std::function<void(Event)>& emit) {
  Request* request = find_unfinished(id);
  if (request == nullptr) return false;
  Event event;
  event.finish_reason = FinishReason::cancelled;
  finish(*request, std::move(event), emit);
  release_finished();
  return true;
}

void Scheduler::cancel_all(const std::function<void(Event)>& emit) {
  const auto cancel_one = [&](Request& request) {
    Event event;
    event.finish_reason = FinishReason::cancelled;
    finish(request, std::move(event), emit);
  };
  for (const auto& request : running_) cancel_one(*request);
  for (const auto& request : waiting_) cancel_one(*request);
  release_finished();
}

void Scheduler::finish(Request& request, Event event, const std::function<void(Event)>& emit) {
  request.finish_reason = event.finish_reason;
  event.request_id = request.id;
  event.num_prompt_tokens = static_cast<std::uint32_t>(request.num_prompt_tokens);
  event.num_output_tokens = static_cast<std::uint32_t>(request.num_output_tokens());
  emit(std::move(event));
}

void Scheduler::finish_step(const ScheduledStep& step) {
  for (const auto& sequence : step.sequences) --sequence.request->num_steps_in_flight;
  release_finished();
}

void Scheduler::release_finished() {
  // A session may still write into the blocks of a request that has ended: they return after the last step naming them.
  const auto move_finished = [](auto& from, auto& to) {
    const auto finished = std::stable_partition(from.begin(), from.end(), [](const auto& r) { return !r->finished(); });
    std::move(finished, from.end(), std::back_inserter(to));
    from.erase(finished, from.end());
  };
  std::erase_if(waiting_, [](const auto& request) { return request->finished(); });
  move_finished(running_, leaving_);
  std::erase_if(leaving_, [this](const auto& request) {
    if (request->num_steps_in_flight > 0) return false;
    num_reserved_blocks_ -= request->num_reserved_blocks;
    pool_.release(request->blocks);
    return true;
  });
}

void Scheduler::check_integrity() const {
  pool_.check_integrity();
  std::unordered_set<std::int32_t> used;
  std::size_t reserved = 0;
  for (const auto* requests : {&running_, &leaving_}) {
    for (const auto& request : *requests) {
      reserved += request->num_reserved_blocks;
      used.insert(request->blocks.begin(), request->blocks.end());
      if (request->blocks.size() > request->num_reserved_blocks || request->num_computed > request->num_scheduled ||
          request->num_scheduled > request->token_ids.size()) {
        throw std::logic_error(concat("request ", request->id, " has more than was planned for it"));
      }
    }
  }
  const auto num_used = static_cast<std::size_t>(pool_.num_blocks() - pool_.num_free());
  if (used.size() != num_used) throw std::logic_error(concat(num_used, " blocks in use, ", used.size(), " owned"));
  if (reserved != num_reserved_blocks_) throw std::logic_error("reservations do not add up");
}

}  // namespace precast
