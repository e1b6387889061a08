#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "runtime/native/src/block_key.h"

namespace precast {

/// A full block's worth of tokens after a certain prefix, and where their keys and values are.
struct PrefixNode {
  BlockKey key;
  BlockKey parent;                      ///< key of the block before; of the salt's root for the first
  std::vector<std::int32_t> token_ids;  ///< [tokens_per_block]
  std::uint32_t depth = 0;              ///< index of the block in its sequences
  std::vector<std::int32_t> blocks;     ///< for each KV group the block, or -1
  std::uint32_t priority = 0;
  std::int64_t duration_ns = 0;         ///< of the priority, after the last use; 0: without end

  bool is_empty() const noexcept;
};

/// The tree of all prefixes whose KV blocks are known, as a table from keys to nodes: a key is the whole way from the root.
///
/// A node may be there while its parent is gone (its blocks were needed elsewhere): it can be found again when the parent is.
/// Addresses of nodes stay valid until they are erased.
class PrefixTree {
 public:
  PrefixTree(std::size_t num_groups, std::size_t num_blocks) : num_groups_(num_groups), owners_(num_blocks) {}

  /// The node with this key, if it says the same as it: keys are hashes. nullptr: none.
  PrefixNode* find(const BlockKey& key, const BlockKey& parent, std::span<const std::int32_t> token_ids);
  PrefixNode* find(const BlockKey& key);

  /// The node, new if need be; nullptr when another one has its key.
  PrefixNode* insert(const BlockKey& key, const BlockKey& parent, std::span<const std::int32_t> token_ids,
                     std::uint32_t depth);

  void set_block(PrefixNode& node, std::size_t group, std::int32_t block);

  /// The node that the block belongs to, and nullptr for none.
  PrefixNode* owner(std::int32_t block) const { return owners_.at(static_cast<std::size_t>(block)); }

  /// Parts a block from its node. Returns the node's key when that was its last block and the node is gone.
  std::optional<BlockKey> remove_block(std::int32_t block);

  std::size_t size() const noexcept { return nodes_.size(); }

  /// Throws std::logic_error unless nodes and blocks name each other.
  void check_integrity() const;

 private:
  std::size_t num_groups_;
  std::unordered_map<BlockKey, PrefixNode> nodes_;
  std::vector<PrefixNode*> owners_;  // by block
};

}  // namespace precast
