#include "runtime/native/src/block_pool.h"

#include <stdexcept>
#include <utility>

#include "runtime/native/src/concat.h"

namespace precast {

BlockPool::BlockPool(std::int32_t num_blocks, Evicted evicted) : evicted_(std::move(evicted)) {
  if (num_blocks < 1) throw std::logic_error(concat("a block pool of ", num_blocks, " blocks"));
  blocks_.resize(static_cast<std::size_t>(num_blocks));
  blank_.reserve(static_cast<std::size_t>(num_blocks));
  for (std::int32_t block = num_blocks; block-- > 0;) blank_.push_back(block);
}

BlockPool::Block& BlockPool::at(std::int32_t block) {
  if (block < 0 || block >= num_blocks()) {
    throw std::logic_error(concat("block ", block, " does not belong to this pool of ", num_blocks()));
  }
  return blocks_[static_cast<std::size_t>(block)];
}

const BlockPool::Block& BlockPool::at(std::int32_t block) const { return const_cast<BlockPool*>(this)->at(block); }

std::int32_t BlockPool::num_owners(std::int32_t block) const { return at(block).num_owners; }

bool BlockPool::is_idle(std::int32_t block) const { return at(block).idle_rank.has_value(); }

bool BlockPool::allocate(std::size_t count, std::vector<std::int32_t>& blocks) {
  if (count > static_cast<std::size_t>(num_free())) return false;
  blocks.reserve(blocks.size() + count);
  for (std::size_t i = 0; i < count; ++i) {
    std::int32_t block = -1;
    if (blank_.empty()) {
      block = take_least_idle();
    } else {
      block = blank_.back();
      blank_.pop_back();
    }
    at(block).num_owners = 1;
    blocks.push_back(block);
  }
  return true;
}

std::int32_t BlockPool::take_least_idle() {
  const std::int32_t block = idle_.begin()->block;
  leave_idle(block);
  evicted_(block);
  return block;
}

void BlockPool::leave_idle(std::int32_t block) {
  std::optional<BlockRank>& rank = at(block).idle_rank;
  if (!rank) throw std::logic_error(concat("block ", block, " is not idle"));
  idle_.erase({*rank, block});
  rank.reset();
}

void BlockPool::share(std::int32_t block) {
  Block& shared = at(block);
  if (shared.idle_rank) {
    leave_idle(block);
  } else if (shared.num_owners == 0) {
    throw std::logic_error(concat("block ", block, " is blank and cannot be shared"));
  }
  ++shared.num_owners;
}

void BlockPool::release(std::int32_t block, std::optional<BlockRank> keep) {
  Block& released = at(block);
  if (released.num_owners == 0) throw std::logic_error(concat("block ", block, " is released and has no owner"));
  if (--released.num_owners > 0) return;
  if (!keep) {
    blank_.push_back(block);
    return;
  }
  released.idle_rank = keep;
  idle_.insert({*keep, block});
}

void BlockPool::rerank(std::int32_t block, const BlockRank& rank) {
  leave_idle(block);
  at(block).idle_rank = rank;
  idle_.insert({rank, block});
}

void BlockPool::forget(std::int32_t block) {
  leave_idle(block);
  blank_.push_back(block);
}

void BlockPool::check_integrity() const {
  std::vector<int> times_listed(blocks_.size(), 0);
  for (const std::int32_t block : blank_) ++times_listed.at(static_cast<std::size_t>(block));
  for (const Idle& idle : idle_) {
    ++times_listed.at(static_cast<std::size_t>(idle.block));
    if (at(idle.block).idle_rank != idle.rank) throw std::logic_error(concat("block ", idle.block, " has two ranks"));
  }
  for (std::size_t block = 0; block < blocks_.size(); ++block) {
    const int wanted = blocks_[block].num_owners == 0 ? 1 : 0;
    if (times_listed[block] != wanted || blocks_[block].num_owners < 0) {
      throw std::logic_error(concat("block ", block, " has ", blocks_[block].num_owners, " owners and is listed as free ",
                                    times_listed[block], " times"));
    }
  }
}

}  // namespace precast
