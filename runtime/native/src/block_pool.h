#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <vector>

namespace precast {

/// How much an unused block is worth: the least is given away first.
struct BlockRank {
  std::uint32_t priority = 0;  ///< low before high
  std::uint64_t last_use = 0;  ///< long ago before recent
  std::uint32_t depth = 0;     ///< far from the start of its sequence before near: what follows needs what precedes

  friend std::weak_ordering operator<=>(const BlockRank& a, const BlockRank& b) noexcept {
    if (const auto order = a.priority <=> b.priority; order != 0) return order;
    if (const auto order = a.last_use <=> b.last_use; order != 0) return order;
    return b.depth <=> a.depth;
  }
  friend bool operator==(const BlockRank&, const BlockRank&) = default;
};

/// Who owns which KV block. A block holds the keys and values of tokens_per_block positions of one sequence, in the layers of
/// one KV group: block id b is row b of each of their pools. The pool hands out ids and touches no memory.
///
///     blank --allocate--> in use (by one or more owners) --last release--> blank, or idle if its contents are to be kept
///     idle --share--> in use            idle --allocate, when no block is blank: the one of least rank--> in use, by another
///
/// No room is a value (allocate returns false). Misuse, such as releasing a block that nobody owns, is a defect and throws
/// std::logic_error.
class BlockPool {
 public:
  /// Told of each idle block whose contents are given up, before its new owner gets it.
  using Evicted = std::function<void(std::int32_t)>;

  /// Blocks 0 .. num_blocks - 1, all blank. num_blocks >= 1.
  BlockPool(std::int32_t num_blocks, Evicted evicted);

  std::int32_t num_blocks() const noexcept { return static_cast<std::int32_t>(blocks_.size()); }
  std::int32_t num_free() const noexcept { return static_cast<std::int32_t>(blank_.size() + idle_.size()); }
  std::int32_t num_idle() const noexcept { return static_cast<std::int32_t>(idle_.size()); }
  std::int32_t num_owners(std::int32_t block) const;
  bool is_idle(std::int32_t block) const;

  /// Appends `count` blocks with one owner each to `blocks`; or changes nothing and returns false when fewer are free.
  /// The block that became blank last is given first: its memory is the warmest, and memory never used stays untouched.
  [[nodiscard]] bool allocate(std::size_t count, std::vector<std::int32_t>& blocks);

  /// One more owner, of a block that is in use or idle.
  void share(std::int32_t block);

  /// One owner less. The last one leaves the block idle with rank `keep`, or blank.
  void release(std::int32_t block, std::optional<BlockRank> keep);

  /// Another rank for an idle block.
  void rerank(std::int32_t block, const BlockRank& rank);

  /// An idle block becomes blank; Evicted is not told.
  void forget(std::int32_t block);

  /// Throws std::logic_error unless every block is in exactly one of the three states.
  void check_integrity() const;

 private:
  struct Block {
    std::int32_t num_owners = 0;
    std::optional<BlockRank> idle_rank;  // exactly while the block is in idle_
  };
  struct Idle {
    BlockRank rank;
    std::int32_t block;
    friend bool operator<(const Idle& a, const Idle& b) noexcept {
      const auto order = a.rank <=> b.rank;
      return order != 0 ? order < 0 : a.block < b.block;
    }
  };

  Block& at(std::int32_t block);
  const Block& at(std::int32_t block) const;
  std::int32_t take_least_idle();
  void leave_idle(std::int32_t block);

  Evicted evicted_;
  std::vector<Block> blocks_;
  std::vector<std::int32_t> blank_;  // a stack; its end is given out next
  std::set<Idle> idle_;
};

}  // namespace precast
