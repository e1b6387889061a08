#include "runtime/native/src/block_pool.h"

#include <stdexcept>

#include "runtime/native/src/concat.h"

namespace precast {

BlockPool::BlockPool(std::int32_t num_blocks) {
  if (num_blocks < 1) throw std::logic_error(concat("a block pool of ", num_blocks, " blocks"));
  is_free_.assign(static_cast<std::size_t>(num_blocks), true);
  free_.reserve(static_cast<std::size_t>(num_blocks));
  for (std::int32_t block = num_blocks; block-- > 0;) free_.push_back(block);
}

bool BlockPool::allocate(std::size_t count, std::vector<std::int32_t>& blocks) {
  if (count > free_.size()) return false;
  blocks.reserve(blocks.size() + count);
  for (std::size_t i = 0; i < count; ++i) {
    const std::int32_t block = free_.back();
    free_.pop_back();
    is_free_[static_cast<std::size_t>(block)] = false;
    blocks.push_back(block);
  }
  return true;
}

void BlockPool::release(std::vector<std::int32_t>& blocks) {
  // Backwards, so that the next sequence gets them in the order this one had them.
  for (; !blocks.empty(); blocks.pop_back()) {
    const std::int32_t block = blocks.back();
    if (block < 0 || block >= num_blocks()) {
      throw std::logic_error(concat("block ", block, " does not belong to this pool of ", num_blocks()));
    }
    if (is_free_[static_cast<std::size_t>(block)]) throw std::logic_error(concat("block ", block, " released twice"));
    is_free_[static_cast<std::size_t>(block)] = true;
    free_.push_back(block);
  }
}

void BlockPool::check_integrity() const {
  std::vector<bool> listed(is_free_.size(), false);
  for (const std::int32_t block : free_) {
    const auto index = static_cast<std::size_t>(block);
    if (listed.at(index)) throw std::logic_error(concat("block ", block, " is listed as free twice"));
    listed[index] = true;
  }
  if (listed != is_free_) throw std::logic_error("the list of free blocks and the marks of free blocks differ");
}

}  // namespace precast
