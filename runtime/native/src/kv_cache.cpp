#include "runtime/native/src/kv_cache.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <unordered_map>

#include "runtime/native/src/concat.h"
#include "runtime/native/src/kv_plan.h"

namespace precast {

namespace {

/// Whether a priority for so long (0: for ever) is more than what the node has.
bool is_worth_more(std::uint32_t priority, std::int64_t duration_ns, const PrefixNode& node) noexcept {
  if (priority != node.priority) return priority > node.priority;
  return node.duration_ns != 0 && (duration_ns == 0 || duration_ns > node.duration_ns);
}

}  // namespace

KvCache::KvCache(const KvCacheConfig& config)
    : config_(config),
      hasher_(config.secret),
      pool_(config.num_blocks, [this](std::int32_t block) { lose(block); }),
      tree_(config.windows.size(), static_cast<std::size_t>(config.num_blocks)),
      events_(config.events_size),
      idle_since_(static_cast<std::size_t>(config.num_blocks)),
      written_by_(static_cast<std::size_t>(config.num_blocks)),
      num_holders_(static_cast<std::size_t>(config.num_blocks)),
      expires_ns_(static_cast<std::size_t>(config.num_blocks)) {
  if (config.tokens_per_block < 1) throw std::logic_error("a KV cache with blocks of no tokens");
  events_.created(static_cast<std::size_t>(config.num_blocks));
}

KvSequence KvCache::open(std::string_view salt, std::vector<RetentionRange> retention, bool skip_reuse) const {
  KvSequence sequence;
  sequence.root = hasher_.root(salt);
  sequence.skip_reuse = skip_reuse;
  sequence.retention = std::move(retention);
  sequence.tables.resize(config_.windows.size());
  return sequence;
}

std::size_t KvCache::blocks_for(std::size_t num_tokens) const noexcept {
  return (num_tokens + config_.tokens_per_block - 1) / config_.tokens_per_block;
}

/// The first block of which the token at `position` sees something.
std::size_t KvCache::first_visible_block(std::size_t group, std::size_t position) const noexcept {
  const auto window = static_cast<std::size_t>(config_.windows[group]);
  if (window == 0 || position < window) return 0;
  return (position - window + 1) / config_.tokens_per_block;
}

std::size_t KvCache::peak_blocks(std::size_t num_tokens, std::size_t max_chunk) const noexcept {
  std::size_t sum = 0;
  for (const std::int64_t window : config_.windows) {
    sum += blocks_of_sequence(num_tokens, window, max_chunk, config_.tokens_per_block);
  }
  return sum;
}

// ------------------------------------------------------------------------------------------------------------ finding

const BlockKey& KvCache::parent_key(const KvSequence& sequence, std::size_t block) const {
  return block == 0 ? sequence.root : sequence.keys[block - 1];
}

const BlockKey& KvCache::key(KvSequence& sequence, std::span<const std::int32_t> token_ids, std::size_t block) {
  while (sequence.keys.size() <= block) {
    const std::size_t next = sequence.keys.size();
    const auto tokens = token_ids.subspan(next * config_.tokens_per_block, config_.tokens_per_block);
    sequence.keys.push_back(hasher_.child(parent_key(sequence, next), tokens));
  }
  return sequence.keys[block];
}

KvCache::Hit KvCache::find(KvSequence& sequence, std::span<const std::int32_t> token_ids, std::size_t num_tokens) {
  hit_nodes_.clear();
  if (!config_.reuse || sequence.skip_reuse || config_.windows.empty()) return {};
  const std::size_t size = config_.tokens_per_block;
  if (num_tokens % size != 0) throw std::logic_error(concat("blocks are looked for behind ", num_tokens, " tokens"));
  const std::size_t first = num_tokens / size;
  const std::size_t last = token_ids.empty() ? 0 : (token_ids.size() - 1) / size;
  const bool all_windowed = std::ranges::find(config_.windows, 0) == config_.windows.end();
  for (std::size_t block = first; block < last; ++block) {
    const BlockKey& wanted = key(sequence, token_ids, block);
    hit_nodes_.push_back(tree_.find(wanted, parent_key(sequence, block), token_ids.subspan(block * size, size)));
    // A layer that sees everything needs every block; windows alone may be served by later ones.
    if (hit_nodes_.back() == nullptr && !all_windowed) break;
  }
  hit_nodes_.resize(longest_hit(first, hit_nodes_));

  Hit hit{.num_blocks = hit_nodes_.size()};
  for (std::size_t group = 0; group < config_.windows.size(); ++group) {
    const std::size_t visible = first_visible_block(group, (first + hit.num_blocks) * size);
    for (std::size_t i = visible > first ? visible - first : 0; i < hit.num_blocks; ++i) {
      if (pool_.is_idle(hit_nodes_[i]->blocks[group])) continue;
      ++hit.num_shared;
      if (config_.windows[group] == 0) ++hit.num_shared_for_good;
    }
  }
  return hit;
}

/// How many of `nodes`, which follow block `first`, can be taken: the next token must find everything it sees.
std::size_t KvCache::longest_hit(std::size_t first, std::span<PrefixNode* const> nodes) const {
  std::vector<std::size_t> runs(config_.windows.size(), 0);  // of each group the present blocks that end here
  std::size_t longest = 0;
  for (std::size_t count = 1; count <= nodes.size(); ++count) {
    const PrefixNode* node = nodes[count - 1];
    bool usable = true;
    for (std::size_t group = 0; group < runs.size(); ++group) {
      runs[group] = node != nullptr && node->blocks[group] >= 0 ? runs[group] + 1 : 0;
      const std::size_t visible = first_visible_block(group, (first + count) * config_.tokens_per_block);
      // Of the blocks before `first`, the sequence still has those that are visible.
      usable &= runs[group] >= first + count - std::max(first, std::min(visible, first + count));
    }
    if (usable) longest = count;
  }
  return longest;
}

void KvCache::take(KvSequence& sequence, const Hit& hit) {
  if (hit.num_blocks != hit_nodes_.size()) throw std::logic_error("another hit is taken than was found");
  if (hit.num_blocks == 0) return;
  const std::size_t first = sequence.tables.front().size();
  leave_window(sequence, (first + hit.num_blocks) * config_.tokens_per_block);
  for (std::size_t group = 0; group < sequence.tables.size(); ++group) {
    const std::size_t visible = first_visible_block(group, (first + hit.num_blocks) * config_.tokens_per_block);
    for (std::size_t i = 0; i < hit.num_blocks; ++i) {
      const std::int32_t block = first + i < visible ? -1 : hit_nodes_[i]->blocks[group];
      sequence.tables[group].push_back(block);
      if (block < 0) continue;
      pool_.share(block);
      end_expiry(block);
      hold(sequence, group, block);
      ++num_reused_;
    }
  }
  sequence.num_stored = first + hit.num_blocks;
  hit_nodes_.clear();
}

// ------------------------------------------------------------------------------------------------- growing and storing

bool KvCache::grow(KvSequence& sequence, std::size_t num_tokens) {
  if (sequence.tables.empty()) return true;  // a model without attention
  const std::size_t wanted = blocks_for(num_tokens);
  const std::size_t present = sequence.tables.front().size();
  if (wanted <= present) return true;
  const std::size_t missing = wanted - present;
  std::vector<std::int32_t> blocks;
  if (!pool_.allocate(missing * sequence.tables.size(), blocks)) return false;
  auto next = blocks.begin();
  for (std::size_t group = 0; group < sequence.tables.size(); ++group) {
    for (std::size_t i = 0; i < missing; ++i) {
      written_by_[static_cast<std::size_t>(*next)] = 0;
      sequence.tables[group].push_back(*next);
      hold(sequence, group, *next++);
    }
  }
  num_allocated_ += blocks.size();
  return true;
}

void KvCache::store(KvSequence& sequence, std::span<const std::int32_t> token_ids, std::size_t num_written,
                    std::size_t num_computed, std::uint64_t step) {
  if (!config_.reuse) return;
  const std::size_t num_full = std::min(num_written, token_ids.size()) / config_.tokens_per_block;
  for (; sequence.num_stored < num_full; ++sequence.num_stored) {
    const bool computed = (sequence.num_stored + 1) * config_.tokens_per_block <= num_computed;
    store_block(sequence, token_ids, sequence.num_stored, computed ? 0 : step);
    ++num_missed_;
  }
}

void KvCache::store_block(KvSequence& sequence, std::span<const std::int32_t> token_ids, std::size_t block,
                          std::uint64_t step) {
  const std::size_t size = config_.tokens_per_block;
  const BlockKey own_key = key(sequence, token_ids, block);
  const auto gone = [&](const auto& table) { return table[block] < 0; };
  if (std::ranges::all_of(sequence.tables, gone)) return;
  const bool is_new = tree_.find(own_key) == nullptr;
  PrefixNode* node = tree_.insert(own_key, parent_key(sequence, block), token_ids.subspan(block * size, size),
                                  static_cast<std::uint32_t>(block));
  if (node == nullptr) return;  // other tokens have the same key
  for (std::size_t group = 0; group < sequence.tables.size(); ++group) {
    const std::int32_t own = sequence.tables[group][block];
    if (own < 0 || node->blocks[group] >= 0) continue;  // the same, computed by another, is there already
    tree_.set_block(*node, group, own);
    written_by_[static_cast<std::size_t>(own)] = step;
  }
  const RetentionRange& range = retention_of(sequence, block);
  if (is_new) {
    node->priority = range.priority;
    node->duration_ns = range.duration_ns;
    announce(*node);
  } else if (is_worth_more(range.priority, range.duration_ns, *node)) {
    set_priority(*node, range.priority, range.duration_ns);
  }
  // What a block is worth, what precedes it is worth too: alone it cannot be found.
  for (PrefixNode* before = tree_.find(node->parent);
       before != nullptr && is_worth_more(node->priority, node->duration_ns, *before);
       before = tree_.find(before->parent)) {
    set_priority(*before, node->priority, node->duration_ns);
  }
}

/// A block has the retention of its first token.
const RetentionRange& KvCache::retention_of(const KvSequence& sequence, std::size_t block) const noexcept {
  static constexpr RetentionRange otherwise;
  const std::size_t start = block * config_.tokens_per_block;
  for (auto range = sequence.retention.rbegin(); range != sequence.retention.rend(); ++range) {
    if (start >= range->start_token && (range->end_token == 0 || start < range->end_token)) return *range;
  }
  return otherwise;
}

void KvCache::announce(PrefixNode& node) {
  if (!events_.enabled()) return;
  const std::optional<BlockKey> parent = node.depth == 0 ? std::nullopt : std::optional(node.parent);
  events_.stored(parent, {node.key, node.token_ids, node.priority});
}

void KvCache::set_priority(PrefixNode& node, std::uint32_t priority, std::int64_t duration_ns) {
  if (node.priority != priority) events_.updated(node.key, priority);
  node.priority = priority;
  node.duration_ns = duration_ns;
  for (const std::int32_t block : node.blocks) {
    if (block < 0 || !pool_.is_idle(block)) continue;
    pool_.rerank(block, {priority, idle_since_[static_cast<std::size_t>(block)], node.depth});
    set_expiry(block, duration_ns);
  }
}

/// From now on; 0: never.
void KvCache::set_expiry(std::int32_t block, std::int64_t duration_ns) {
  end_expiry(block);
  if (duration_ns == 0 || duration_ns > std::numeric_limits<std::int64_t>::max() - now_ns_) return;
  std::int64_t& expires_ns = expires_ns_[static_cast<std::size_t>(block)];
  expires_ns = now_ns_ + duration_ns;
  expiries_.insert({expires_ns, block});
}

void KvCache::end_expiry(std::int32_t block) {
  std::int64_t& expires_ns = expires_ns_[static_cast<std::size_t>(block)];
  expiries_.erase({expires_ns, block});
  expires_ns = 0;
}

/// Whether some group's block is in use, or was used so lately that its priority holds: a window leaves blocks behind that
/// other layers still see.
bool KvCache::is_wanted(const PrefixNode& node) const {
  return std::ranges::any_of(node.blocks, [this](std::int32_t block) {
    return block >= 0 && (!pool_.is_idle(block) || expires_ns_[static_cast<std::size_t>(block)] != 0);
  });
}

// ----------------------------------------------------------------------------------------------------------- giving up

void KvCache::leave_window(KvSequence& sequence, std::size_t num_computed) {
  for (std::size_t group = 0; group < sequence.tables.size(); ++group) {
    auto& table = sequence.tables[group];
    // What was given up before is at the front: go backwards until it begins.
    for (std::size_t block = std::min(first_visible_block(group, num_computed), table.size()); block-- > 0;) {
      if (table[block] < 0) break;
      ++last_use_;
      let_go(sequence, group, table[block]);
      release_block(table[block]);
      table[block] = -1;
    }
  }
}

void KvCache::hold(KvSequence& sequence, std::size_t group, std::int32_t block) {
  ++sequence.num_held;
  if (config_.windows[group] == 0) {
    ++sequence.num_held_for_good;
  } else if (++num_holders_[static_cast<std::size_t>(block)] == 1) {
    ++num_window_blocks_;
  }
}

void KvCache::let_go(KvSequence& sequence, std::size_t group, std::int32_t block) {
  --sequence.num_held;
  if (config_.windows[group] == 0) {
    --sequence.num_held_for_good;
  } else if (--num_holders_[static_cast<std::size_t>(block)] == 0) {
    --num_window_blocks_;
  }
}

void KvCache::retire(KvSequence& sequence, std::uint64_t last_step) {
  for (std::size_t group = 0; group < sequence.tables.size(); ++group) {
    for (const std::int32_t block : sequence.tables[group]) {
      if (block >= 0) let_go(sequence, group, block);
    }
  }
  if (last_step <= last_collected_) {
    release(sequence.tables);
  } else {
    retiring_.push_back({last_step, sequence.tables});
  }
  for (auto& table : sequence.tables) table.clear();
  sequence.num_stored = 0;
}

void KvCache::collected(std::uint64_t step) {
  last_collected_ = std::max(last_collected_, step);
  std::erase_if(retiring_, [this](Retiring& retiring) {
    if (retiring.last_step > last_collected_) return false;
    release(retiring.tables);
    return true;
  });
}

/// Backwards, so that blank blocks are given out again in the order in which this sequence had them.
void KvCache::release(std::vector<std::vector<std::int32_t>>& tables) {
  ++last_use_;
  for (auto table = tables.rbegin(); table != tables.rend(); ++table) {
    for (auto block = table->rbegin(); block != table->rend(); ++block) {
      if (*block >= 0) release_block(*block);
    }
  }
}

void KvCache::release_block(std::int32_t block) {
  const PrefixNode* node = tree_.owner(block);
  if (node == nullptr) return pool_.release(block, std::nullopt);
  pool_.release(block, BlockRank{node->priority, last_use_, node->depth});
  if (!pool_.is_idle(block)) return;
  idle_since_[static_cast<std::size_t>(block)] = last_use_;
  set_expiry(block, node->duration_ns);
}

/// A block's contents are given up.
void KvCache::lose(std::int32_t block) {
  end_expiry(block);
  if (const auto key = tree_.remove_block(block)) events_.removed(*key);
}

/// Not only what can still be found: between being taken and being lost a block may have left the tree (reset).
std::unordered_set<std::int32_t> KvCache::forget_since(std::uint64_t step) {
  std::unordered_set<std::int32_t> lost;
  for (std::int32_t block = 0; block < pool_.num_blocks(); ++block) {
    if (written_by_[static_cast<std::size_t>(block)] < step) continue;
    lost.insert(block);
    forget(block);
  }
  return lost;
}

void KvCache::reset() {
  for (std::int32_t block = 0; block < pool_.num_blocks(); ++block) forget(block);
}

/// Its contents are not found again.
void KvCache::forget(std::int32_t block) {
  if (tree_.owner(block) == nullptr) return;
  lose(block);
  if (pool_.is_idle(block)) pool_.forget(block);
}

void KvCache::set_time(std::int64_t now_ns) {
  now_ns_ = now_ns;
  while (!expiries_.empty() && expiries_.begin()->first <= now_ns) {
    const std::int32_t block = expiries_.begin()->second;
    end_expiry(block);
    PrefixNode& node = *tree_.owner(block);
    if (!is_wanted(node)) set_priority(node, default_retention_priority, 0);
  }
}

void KvCache::check_integrity(std::span<const KvSequence* const> sequences) const {
  pool_.check_integrity();
  tree_.check_integrity();
  std::unordered_map<std::int32_t, std::int32_t> owners;
  const auto count = [&](const auto& tables) {
    std::size_t held = 0;
    for (const auto& table : tables) {
      for (const std::int32_t block : table) {
        if (block < 0) continue;
        ++owners[block];
        ++held;
      }
    }
    return held;
  };
  for (const KvSequence* sequence : sequences) {
    const std::size_t held = count(sequence->tables);
    if (held != sequence->num_held) throw std::logic_error(concat("a sequence holds ", held, " blocks and counts ",
                                                                  sequence->num_held));
  }
  for (const Retiring& retiring : retiring_) count(retiring.tables);
  for (std::int32_t block = 0; block < pool_.num_blocks(); ++block) {
    const auto found = owners.find(block);
    const std::int32_t counted = found == owners.end() ? 0 : found->second;
    if (pool_.num_owners(block) != counted) {
      throw std::logic_error(concat("block ", block, " is in ", counted, " tables and has ", pool_.num_owners(block),
                                    " owners"));
    }
    if (pool_.is_idle(block) && tree_.owner(block) == nullptr) {
      throw std::logic_error(concat("block ", block, " is kept and cannot be found"));
    }
  }
}

}  // namespace precast
