#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "runtime/native/src/block_pool.h"
#include "runtime/native/src/request.h"
#include "runtime/native/src/sampling/sampled_token.h"
#include "runtime/native/src/step_batch.h"

namespace precast {

struct SchedulerConfig {
  std::size_t max_batch_size = 64;     ///< sequences in one step
  std::size_t max_num_tokens = 2048;   ///< tokens in one step; >= max_batch_size
  std::size_t tokens_per_block = 16;
  std::int32_t num_blocks = 0;         ///< of the KV pool
};

/// A request's part of one step.
struct ScheduledSequence {
  Request* request = nullptr;         ///< alive until the step is given to Scheduler::update
  std::size_t num_tokens = 0;         ///< rows of this step, >= 1
  std::size_t num_prompt_tokens = 0;  ///< those of them that belong to the prompt
  bool wants_logits = false;          ///< its last row is in StepBatch::logit_rows: the next token is to be sampled
};

/// What one step computes, and for whom. sequences[s] is sequence s of the batch.
struct ScheduledStep {
  StepBatch batch;
  std::vector<ScheduledSequence> sequences;
};

/// Decides which requests advance, by how many tokens, with which blocks.
///
/// Policy: guaranteed-no-evict. A request is admitted, first come first served, when the blocks it may need until its end
/// are not promised to others; what has been admitted never waits for blocks. Sequences that only need their next token come
/// first in a step, then prompts, in chunks that fill the token budget; so a long prompt delays nobody's next token by more
/// than one step of max_num_tokens.
///
/// Not thread-safe: the engine's thread owns it.
class Scheduler {
 public:
  explicit Scheduler(const SchedulerConfig& config);

  /// Queues a request. Its prompt and max_tokens fit the pool (blocks_needed <= num_blocks), its id is not in use.
  void add(std::unique_ptr<Request> request);

  /// Ends a request early and tells `emit`. False: no unfinished request has this id.
  bool cancel(std::uint64_t id, const std::function<void(Event)>& emit);
  void cancel_all(const std::function<void(Event)>& emit);

  /// The next step; empty sequences: nothing can advance now.
  ScheduledStep schedule();

  /// Takes the result of a step, in the order steps were scheduled. `sampled` has one entry for each sequence with
  /// wants_logits, in order. Requests that ended meanwhile are passed over.
  void update(const ScheduledStep& step, std::span<const SampledToken> sampled, const std::function<void(Event)>& emit);

  /// The step failed: every unfinished request in it ends with `error`. The others know nothing of it.
  void fail(const ScheduledStep& step, const Error& error, const std::function<void(Event)>& emit);

  /// Blocks that `num_tokens` tokens (prompt and output together) occupy. The last output token is never computed, but a
  /// block for it is counted: the difference is one block in tokens_per_block cases.
  std::size_t blocks_needed(std::size_t num_tokens) const noexcept;

  bool has_unfinished() const noexcept { return !waiting_.empty() || !running_.empty(); }
  std::size_t num_waiting() const noexcept { return waiting_.size(); }
  std::size_t num_running() const noexcept { return running_.size(); }
  const BlockPool& pool() const noexcept { return pool_; }

  /// Throws std::logic_error unless requests, reservations and blocks add up.
  void check_integrity() const;

 private:
  void admit();
  void schedule_tokens(Request& request, std::size_t num_tokens, ScheduledStep& step);
  void append_tokens(const Request& request, std::size_t num_tokens, StepBatch& batch) const;
  void fill_block_tables(ScheduledStep& step) const;
  void accept_token(Request& request, const SampledToken& sampled, const std::function<void(Event)>& emit);
  void finish(Request& request, Event event, const std::function<void(Event)>& emit);
  void finish_step(const ScheduledStep& step);
  void release_finished();
  Request* find_unfinished(std::uint64_t id);

  SchedulerConfig config_;
  BlockPool pool_;
  std::size_t num_reserved_blocks_ = 0;
  std::deque<std::unique_ptr<Request>> waiting_;    // not admitted, no blocks
  std::vector<std::unique_ptr<Request>> running_;   // admitted, in order of admission
  std::vector<std::unique_ptr<Request>> leaving_;   // ended while a step that names their blocks is in flight
};

}  // namespace precast
