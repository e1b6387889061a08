#include "runtime/native/src/prefix_tree.h"

#include <algorithm>
#include <stdexcept>

#include "runtime/native/src/concat.h"

namespace precast {

bool PrefixNode::is_empty() const noexcept {
  return std::all_of(blocks.begin(), blocks.end(), [](std::int32_t block) { return block < 0; });
}

PrefixNode* PrefixTree::find(const BlockKey& key) {
  const auto found = nodes_.find(key);
  return found == nodes_.end() ? nullptr : &found->second;
}

PrefixNode* PrefixTree::find(const BlockKey& key, const BlockKey& parent, std::span<const std::int32_t> token_ids) {
  PrefixNode* node = find(key);
  if (node == nullptr || node->parent != parent || !std::ranges::equal(node->token_ids, token_ids)) return nullptr;
  return node;
}

PrefixNode* PrefixTree::insert(const BlockKey& key, const BlockKey& parent, std::span<const std::int32_t> token_ids,
                               std::uint32_t depth) {
  if (find(key) != nullptr) return find(key, parent, token_ids);
  PrefixNode& node = nodes_[key];
  node.key = key;
  node.parent = parent;
  node.token_ids.assign(token_ids.begin(), token_ids.end());
  node.depth = depth;
  node.blocks.assign(num_groups_, -1);
  return &node;
}

void PrefixTree::set_block(PrefixNode& node, std::size_t group, std::int32_t block) {
  PrefixNode*& owner = owners_.at(static_cast<std::size_t>(block));
  if (owner != nullptr || node.blocks.at(group) >= 0) {
    throw std::logic_error(concat("block ", block, " or its place in group ", group, " is taken"));
  }
  owner = &node;
  node.blocks[group] = block;
}

std::optional<BlockKey> PrefixTree::remove_block(std::int32_t block) {
  PrefixNode*& owner = owners_.at(static_cast<std::size_t>(block));
  if (owner == nullptr) throw std::logic_error(concat("block ", block, " belongs to no prefix"));
  PrefixNode& node = *owner;
  owner = nullptr;
  *std::find(node.blocks.begin(), node.blocks.end(), block) = -1;
  if (!node.is_empty()) return std::nullopt;
  const BlockKey key = node.key;
  nodes_.erase(key);
  return key;
}

void PrefixTree::check_integrity() const {
  std::size_t num_blocks = 0;
  for (const auto& [key, node] : nodes_) {
    if (node.key != key || node.is_empty()) throw std::logic_error(concat("prefix ", to_hex(key), " is wrong or empty"));
    for (const std::int32_t block : node.blocks) {
      if (block < 0) continue;
      ++num_blocks;
      if (owner(block) != &node) throw std::logic_error(concat("block ", block, " does not know its prefix"));
    }
  }
  const auto owned = std::ranges::count_if(owners_, [](const PrefixNode* node) { return node != nullptr; });
  if (num_blocks != static_cast<std::size_t>(owned)) throw std::logic_error("a block belongs to a prefix that is gone");
}

}  // namespace precast
