#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace precast {

/// Who owns which KV block. A block holds the keys and values of tokens_per_block positions of one sequence, in every layer:
/// block id b is row b of each layer's pool. The pool hands out ids and touches no memory.
///
/// No room is a value (allocate returns false). Misuse, such as returning a block twice, is a defect and throws
/// std::logic_error.
class BlockPool {
 public:
  /// Blocks 0 .. num_blocks - 1, all free. num_blocks >= 1.
  explicit BlockPool(std::int32_t num_blocks);

  std::int32_t num_blocks() const noexcept { return static_cast<std::int32_t>(is_free_.size()); }
  std::int32_t num_free() const noexcept { return static_cast<std::int32_t>(free_.size()); }

  /// Appends `count` free blocks to `blocks`; or changes nothing and returns false when fewer are free.
  /// The block returned last is given first: its memory is the warmest, and memory never used stays untouched.
  [[nodiscard]] bool allocate(std::size_t count, std::vector<std::int32_t>& blocks);

  /// Takes all of `blocks` back and empties the vector.
  void release(std::vector<std::int32_t>& blocks);

  /// Throws std::logic_error unless every block is either free, and listed once, or in use.
  void check_integrity() const;

 private:
  std::vector<std::int32_t> free_;  // a stack; its end is given out next
  std::vector<bool> is_free_;
};

}  // namespace precast
