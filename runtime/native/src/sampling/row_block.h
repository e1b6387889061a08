// One block of a row, as the passes read it.
// Compiled for each kernel level: see row_passes.h.
#pragma once

#include "runtime/native/src/sampling/row_kernels.h"
#include "runtime/native/src/sampling/vectors.h"

namespace precast {
namespace {

constexpr float minus_infinity = -std::numeric_limits<float>::infinity();
constexpr double log2_e = 1.44269504088896340736;

// What a difference of logits is multiplied by to become the exponent of a power of two.
float to_scale(float temperature) noexcept { return static_cast<float>(log2_e / static_cast<double>(temperature)); }

// The logits of one block, padded to a whole one where the row ends within it.
class BlockLogits {
 public:
  BlockLogits(const float* logits, std::size_t num_tokens, std::size_t block) noexcept {
    const std::size_t first = block * tokens_per_row_block;
    const std::size_t count = num_tokens - first;
    if (count >= tokens_per_row_block) {
      data_ = logits + first;
      return;
    }
    pad(logits + first, count);
    data_ = padded_;
  }
  BlockLogits(const Row& row, std::size_t block) noexcept : BlockLogits(row.logits, row.num_tokens, block) {}
  BlockLogits(const BlockLogits&) = delete;
  BlockLogits& operator=(const BlockLogits&) = delete;

  // The logits from number `i` of the block on.
  F32 from(std::size_t i) const noexcept { return load(data_ + i); }

 private:
  [[gnu::noinline]] void pad(const float* logits, std::size_t count) noexcept {
    for (std::size_t i = 0; i < tokens_per_row_block; ++i) padded_[i] = i < count ? logits[i] : minus_infinity;
  }

  const float* data_;
  float padded_[tokens_per_row_block];
};

}  // namespace
}  // namespace precast
