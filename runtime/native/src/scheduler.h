#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <set>
#include <span>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "runtime/native/src/kv_cache.h"
#include "runtime/native/src/request.h"
#include "runtime/native/src/step_batch.h"

namespace precast {

/// precast_capacity_policy_t, where each is explained.
enum class CapacityPolicy : std::uint32_t { guaranteed_no_evict = 0, max_utilization = 1, static_batch = 2 };

struct SchedulerConfig {
  CapacityPolicy policy = CapacityPolicy::guaranteed_no_evict;
  std::size_t max_batch_size = 64;     ///< sequences that run at once
  std::size_t max_num_tokens = 2048;   ///< tokens in one step; >= max_batch_size
  std::size_t max_in_flight = 1;       ///< of the session
  bool session_chooses_tokens = false;
  std::size_t max_candidates = 0;      ///< of the session
  KvCacheConfig kv;
};

/// A request's part of one step.
struct ScheduledSequence {
  std::shared_ptr<Request> request;
  std::uint64_t epoch = 0;            ///< of the request when this was scheduled
  std::size_t num_tokens = 0;         ///< rows of this step, >= 1
  std::size_t num_prompt_tokens = 0;  ///< those of them that belong to the prompt
  std::size_t end = 0;                ///< tokens computed after this step
  bool wants_logits = false;          ///< its last row is in StepBatch::logit_rows: the next token is to be chosen

  /// Whether the request has ended or been started anew since: then the result is nobody's.
  bool is_stale() const noexcept { return request->finished() || request->epoch != epoch; }
};

/// What one step computes, and for whom. sequences[s] is sequence s of the batch.
struct ScheduledStep {
  StepBatch batch;
  std::vector<ScheduledSequence> sequences;
  std::size_t num_first_scheduled = 0;  ///< requests that have left the queue for the first time
  std::int64_t queue_time_ns = 0;       ///< how long those had been in it, summed
};

/// What has happened since the start.
struct SchedulerCounters {
  std::uint64_t num_preemptions = 0;
  std::uint64_t prompt_tokens_computed = 0;
  std::uint64_t prompt_tokens_reused = 0;
};

/// Decides which requests advance, by how many tokens, with which blocks.
///
/// In a step every running request that needs its next token gets it; what is left of max_num_tokens goes to prompts, in order
/// of importance (MoreImportant), in chunks that end at the end of a block. So a long prompt delays nobody's next token by
/// more than one step. Before a request computes tokens it takes what others have computed, or compute in this very step.
///
/// The capacity policies, see precast.h, differ in admit() and make_room(). Whoever waits at the head of the queue holds back
/// those behind it, also smaller ones: else a large request could wait for ever.
///
/// Not thread-safe: the engine's thread owns it.
class Scheduler {
 public:
  using Emit = std::function<void(Event)>;

  explicit Scheduler(const SchedulerConfig& config);

  /// Queues the sequences of one request. Each fits the pool (peak_blocks <= num_blocks); the id is not in use.
  void add(std::vector<std::shared_ptr<Request>> sequences);

  /// Ends a request early and tells `emit`. False: no unfinished request has this id.
  bool cancel(std::uint64_t id, const Emit& emit);
  void cancel_all(const Emit& emit);

  /// Ends requests whose deadline is over.
  void expire(std::int64_t now_ns, const Emit& emit);

  /// The next step; empty sequences: nothing can advance now.
  ScheduledStep schedule(std::int64_t now_ns);

  /// Takes the result of a step, in the order steps were scheduled. `sampled` has one entry for each sequence with
  /// wants_logits, in order; those of stale sequences are not looked at.
  void update(const ScheduledStep& step, std::span<const SampledToken> sampled, const Emit& emit);

  /// The step failed: every unfinished request in it ends with `error`. Others know nothing of it; what they had taken from
  /// this step they compute again.
  void fail(const ScheduledStep& step, const Error& error, const Emit& emit);

  void reset_prefix_cache() { kv_.reset(); }
  std::vector<KvEvent> take_kv_events() { return kv_.events().take(); }

  /// The most blocks that a sequence of `num_tokens` tokens (prompt and output) holds at any moment.
  std::size_t peak_blocks(std::size_t num_tokens) const noexcept;

  bool has_unfinished() const noexcept { return !by_id_.empty(); }
  std::size_t num_waiting() const noexcept { return waiting_.size(); }
  std::size_t num_running() const noexcept { return running_.size(); }
  std::size_t num_paused() const noexcept { return num_paused_; }  ///< preempted, and waiting to go on
  std::size_t num_unscheduled() const noexcept { return num_unscheduled_; }  ///< waiting since they were added
  const KvCache& kv() const noexcept { return kv_; }
  const SchedulerCounters& counters() const noexcept { return counters_; }

  /// Throws std::logic_error unless requests, promises and blocks add up.
  void check_integrity() const;

 private:
  /// What a session is to give of a row; StepBatch::needs_logits and num_candidates. Neither: its own choice of a token.
  struct RowNeeds {
    bool logits = false;
    std::int32_t num_candidates = 0;
  };

  /// How much of max_num_tokens is left, and for whom.
  struct Budget {
    std::size_t num_tokens = 0;
    std::size_t num_reserved = 0;    ///< of them for requests that need one token and have not had it yet
    bool has_prompt_chunk = false;   ///< whether some prompt has been given a part of it
    std::size_t num_generating = 0;  ///< requests that need one token and may still be in this step
  };

  std::size_t num_pending_tokens(const Request& request) const noexcept;
  bool runs_ahead(const Request& request) const noexcept;
  bool has_candidates_for(const SamplingParams& sampling) const noexcept;
  RowNeeds row_needs(const Request& request) const;
  Budget new_budget() const;
  std::size_t num_generating_in_a_step() const;
  bool advance(std::size_t index, Budget& budget, ScheduledStep& step);
  void reuse(Request& request);
  std::size_t choose_num_tokens(const Request& request, const Budget& budget) const;
  bool make_room(std::size_t index, std::size_t num_tokens);
  void admit(Budget& budget, ScheduledStep& step);
  bool has_room_for(Request& request, const KvCache::Hit& hit) const;
  std::size_t num_promised_blocks() const;
  void check_promises() const;
  void describe(const std::shared_ptr<Request>& request, std::size_t num_tokens, ScheduledStep& step);
  void append_tokens(const Request& request, std::size_t num_tokens, StepBatch& batch) const;
  void fill_block_tables(ScheduledStep& step) const;
  void accept_token(const std::shared_ptr<Request>& request, const SampledToken& sampled, const Emit& emit);
  void enter_queue(const std::shared_ptr<Request>& request);
  bool leave_queue(const std::shared_ptr<Request>& request);
  void pause(const std::shared_ptr<Request>& request);
  void finish(std::shared_ptr<Request> request, Event event, const Emit& emit);
  void end_step(std::uint64_t step);
  void end_early(std::uint64_t id, FinishReason reason, const Emit& emit);

  SchedulerConfig config_;
  KvCache kv_;
  std::set<std::shared_ptr<Request>, MoreImportant> waiting_;  // hold no blocks
  std::vector<std::shared_ptr<Request>> running_;              // the most important first
  std::unordered_map<std::uint64_t, std::vector<std::shared_ptr<Request>>> by_id_;  // unfinished sequences
  std::set<std::pair<std::int64_t, std::uint64_t>> deadlines_;                      // when, id
  std::size_t num_paused_ = 0;
  std::size_t num_unscheduled_ = 0;
  std::uint64_t next_arrival_ = 0;
  std::uint64_t last_step_ = 0;
  std::deque<std::uint64_t> in_flight_;  // steps that are scheduled and neither updated nor failed
  bool paused_in_this_step_ = false;
  std::int64_t now_ns_ = 0;
  SchedulerCounters counters_;
};

}  // namespace precast
