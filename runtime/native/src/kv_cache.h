#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <set>
#include <span>
#include <string_view>
#include <unordered_set>
#include <utility>
#include <vector>

#include "runtime/native/src/block_key.h"
#include "runtime/native/src/block_pool.h"
#include "runtime/native/src/kv_events.h"
#include "runtime/native/src/prefix_tree.h"

namespace precast {

inline constexpr std::uint32_t default_retention_priority = 35;
inline constexpr std::uint32_t max_retention_priority = 100;

/// precast_retention_t.
struct RetentionRange {
  std::uint32_t start_token = 0;
  std::uint32_t end_token = 0;     ///< 0: without end
  std::uint32_t priority = default_retention_priority;
  std::int64_t duration_ns = 0;    ///< 0: for ever
};

struct KvCacheConfig {
  std::size_t tokens_per_block = 16;
  std::int32_t num_blocks = 0;              ///< over all groups together
  std::vector<std::int64_t> windows{0};     ///< of each KV group: how many positions a token sees, itself included; 0: all
  bool reuse = true;                        ///< keep the contents of blocks for other sequences
  std::size_t events_size = 0;              ///< events kept, see KvEventBuffer
  BlockHasher::Secret secret{};
};

/// The KV blocks of one sequence, as KvCache has arranged them.
///
///     tables[g]   [ -1 -1 | b7 b2 b9 ]      block i holds positions [i * tokens_per_block, (i + 1) * tokens_per_block)
///                   below the window (its tokens are computed, and no later one sees them)
struct KvSequence {
  BlockKey root;
  bool skip_reuse = false;                        ///< computes everything itself; others may use its blocks
  std::vector<RetentionRange> retention;          ///< where ranges overlap, the later one counts
  std::vector<std::vector<std::int32_t>> tables;  ///< [group][block]
  std::vector<BlockKey> keys;                     ///< of its first blocks, as far as they have been asked for
  std::size_t num_stored = 0;                     ///< its first blocks that the prefix tree has been told of
  std::size_t num_held = 0;                       ///< blocks in all tables
  std::size_t num_held_for_good = 0;              ///< those of them in groups without a window: held until its end
};

/// Arranges the KV memory: gives blocks to sequences, finds what is computed already, and keeps what may be of use again.
///
/// A block becomes findable when a step that completes it is scheduled, not when it has been computed: steps are computed in
/// order, and within a step all keys and values are written before any query reads, so whoever finds it can build on it in the
/// same step. Where such a step fails, what it should have written is forgotten (forget_since).
///
/// Not thread-safe: the scheduler owns it.
class KvCache {
 public:
  explicit KvCache(const KvCacheConfig& config);

  /// A sequence without blocks.
  KvSequence open(std::string_view salt, std::vector<RetentionRange> retention, bool skip_reuse) const;

  /// What continues a sequence and is there already.
  struct Hit {
    std::size_t num_blocks = 0;           ///< full blocks behind those that the sequence has
    std::size_t num_shared = 0;           ///< blocks it would then hold, over all groups, that are in use already
    std::size_t num_shared_for_good = 0;  ///< those of them that no window will leave behind
  };

  /// The longest hit for the tokens `token_ids` of a sequence that has the first `num_tokens` of them, a multiple of
  /// tokens_per_block. The last token is never covered: somebody has to compute logits.
  Hit find(KvSequence& sequence, std::span<const std::int32_t> token_ids, std::size_t num_tokens);

  /// Takes what find found, with nothing in between. The next token is the one behind the hit: what it does not see is given
  /// up, so in a cache with windows no step of the sequence may be in flight.
  void take(KvSequence& sequence, const Hit& hit);

  /// Blocks for the first `num_tokens` tokens of the sequence, in every group; false and no change when there are not enough.
  [[nodiscard]] bool grow(KvSequence& sequence, std::size_t num_tokens);

  /// Makes the full blocks among the first `num_written` tokens findable. `token_ids` are those that are known;
  /// those from `num_computed` on are written by `step` or by one in flight before it.
  void store(KvSequence& sequence, std::span<const std::int32_t> token_ids, std::size_t num_written,
             std::size_t num_computed, std::uint64_t step);

  /// Gives up the blocks that no token from position `num_computed` on sees.
  void leave_window(KvSequence& sequence, std::size_t num_computed);

  /// Gives up all blocks, once every step up to `last_step` has been collected, and starts the sequence anew.
  void retire(KvSequence& sequence, std::uint64_t last_step);
  bool has_retiring() const noexcept { return !retiring_.empty(); }
  /// Every step up to this one has been collected.
  void collected(std::uint64_t step);

  /// Steps from `step` on have not written what they should have. Returns the blocks whose contents are lost.
  std::unordered_set<std::int32_t> forget_since(std::uint64_t step);

  /// Nothing that is cached now will be found again.
  void reset();

  /// The time of this step, CLOCK_MONOTONIC. Ends retention priorities whose time is over.
  void set_time(std::int64_t now_ns);

  /// The most blocks, over all groups, that a sequence of `num_tokens` holds at any moment, when at most `max_chunk` of its
  /// tokens are scheduled and not yet computed.
  std::size_t peak_blocks(std::size_t num_tokens, std::size_t max_chunk) const noexcept;

  std::size_t tokens_per_block() const noexcept { return config_.tokens_per_block; }
  const BlockPool& pool() const noexcept { return pool_; }
  /// Blocks of groups with a window that sequences hold, shared ones counted once: when one sequence leaves such a block
  /// behind, it is free only if no other one still sees it.
  std::size_t num_window_blocks() const noexcept { return num_window_blocks_; }
  std::uint64_t num_allocated() const noexcept { return num_allocated_; }  ///< blocks given out by grow, ever
  std::uint64_t num_reused() const noexcept { return num_reused_; }        ///< blocks given out by take, ever
  std::uint64_t num_missed() const noexcept { return num_missed_; }        ///< full blocks computed and not found, ever
  KvEventBuffer& events() noexcept { return events_; }

  /// Throws std::logic_error unless the blocks' owners are exactly these sequences and those that are retiring.
  void check_integrity(std::span<const KvSequence* const> sequences) const;

 private:
  struct Retiring {
    std::uint64_t last_step;
    std::vector<std::vector<std::int32_t>> tables;
  };

  std::size_t blocks_for(std::size_t num_tokens) const noexcept;
  std::size_t first_visible_block(std::size_t group, std::size_t position) const noexcept;
  const BlockKey& key(KvSequence& sequence, std::span<const std::int32_t> token_ids, std::size_t block);
  const BlockKey& parent_key(const KvSequence& sequence, std::size_t block) const;
  std::size_t longest_hit(std::size_t first, std::span<PrefixNode* const> nodes) const;
  void store_block(KvSequence& sequence, std::span<const std::int32_t> token_ids, std::size_t block, std::uint64_t step);
  const RetentionRange& retention_of(const KvSequence& sequence, std::size_t block) const noexcept;
  void announce(PrefixNode& node);
  void set_priority(PrefixNode& node, std::uint32_t priority, std::int64_t duration_ns);
  void set_expiry(std::int32_t block, std::int64_t duration_ns);
  void end_expiry(std::int32_t block);
  bool is_wanted(const PrefixNode& node) const;
  void hold(KvSequence& sequence, std::size_t group, std::int32_t block);
  void let_go(KvSequence& sequence, std::size_t group, std::int32_t block);
  void release(std::vector<std::vector<std::int32_t>>& tables);
  void release_block(std::int32_t block);
  void lose(std::int32_t block);
  void forget(std::int32_t block);

  KvCacheConfig config_;
  BlockHasher hasher_;
  BlockPool pool_;
  PrefixTree tree_;
  KvEventBuffer events_;
  std::vector<PrefixNode*> hit_nodes_;  // of the last find
  std::deque<Retiring> retiring_;
  std::uint64_t last_collected_ = 0;
  std::uint64_t last_use_ = 0;          // a clock that ticks whenever something is released
  std::int64_t now_ns_ = 0;
  std::vector<std::uint64_t> idle_since_;  // by block: last_use_ when it was released
  std::vector<std::uint64_t> written_by_;  // by block: the step that completes it; 0: before it was stored, or not stored
  std::vector<std::int32_t> num_holders_;  // by block, of groups with a window: sequences, not those that are retiring
  std::size_t num_window_blocks_ = 0;

  std::set<std::pair<std::int64_t, std::int32_t>> expiries_;  // when the priority of which idle block ends
  std::vector<std::int64_t> expires_ns_;                      // by block; 0: it is not in expiries_

  std::uint64_t num_allocated_ = 0;
  std::uint64_t num_reused_ = 0;
  std::uint64_t num_missed_ = 0;
};

}  // namespace precast
