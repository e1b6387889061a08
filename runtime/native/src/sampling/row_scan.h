// The first pass over a row: largest logits, NaN and mass.
// Compiled for each kernel level: see row_passes.h.
#pragma once

#include "runtime/native/src/sampling/row_mass.h"

namespace precast {
namespace {

float largest_lane(F32 x) noexcept {
  float largest = minus_infinity;
  for (std::size_t i = 0; i < lanes; ++i) largest = x[i] > largest ? x[i] : largest;
  return largest;
}

// Adds up masses relative to the largest logit so far, while that grows.
class GrowingMass {
 public:
  explicit GrowingMass(float scale) noexcept : scale_(scale) {}

  void add(const BlockLogits& block, float block_max) noexcept {
    if (block_max == minus_infinity) return;
    if (block_max > max_) {
      const F32 factor = exp2((all(max_) - block_max) * scale_);
      sum_.multiply(static_cast<double>(factor[0]));
      max_ = block_max;
    }
    for (std::size_t i = 0; i < tokens_per_row_block; i += num_columns) {
      for (std::size_t c = 0; c < num_columns; c += lanes) sum_.add(exp2((block.from(i + c) - max_) * scale_), c);
    }
    sum_.end_block();
  }

  double total() const noexcept { return sum_.total(); }

 private:
  float scale_;
  float max_ = minus_infinity;
  MassSum sum_;
};

template <bool with_mass>
RowScan scan_blocks(const float* logits, std::size_t num_tokens, float* block_max, float* copy, float scale) noexcept {
  RowScan scan{minus_infinity, false, 0.0};
  I32 largest_bits = {};  // of magnitudes; those of NaN are above infinity's
  GrowingMass mass(scale);
  for (std::size_t b = 0; b < num_row_blocks(num_tokens); ++b) {
    const BlockLogits block(logits, num_tokens, b);
    F32 largest = block.from(0);
    for (std::size_t i = 0; i < tokens_per_row_block; i += lanes) {
      const F32 logit = block.from(i);
      const I32 bits = reinterpret_cast<I32>(logit) & 0x7FFFFFFF;
      largest_bits = bits > largest_bits ? bits : largest_bits;
      largest = max(logit, largest);
    }
    block_max[b] = largest_lane(largest);
    scan.max = block_max[b] > scan.max ? block_max[b] : scan.max;
    if constexpr (with_mass) mass.add(block, block_max[b]);
    if (copy != nullptr) {
      const std::size_t first = b * tokens_per_row_block;
      const std::size_t count = num_tokens - first < tokens_per_row_block ? num_tokens - first : tokens_per_row_block;
      std::memcpy(copy + first, logits + first, count * sizeof(float));
    }
  }
  for (std::size_t i = 0; i < lanes; ++i) scan.has_nan |= largest_bits[i] > 0x7F800000;
  scan.mass = mass.total();
  return scan;
}

RowScan scan_row(const float* logits, std::size_t num_tokens, float* block_max, float* copy,
                 float mass_temperature) noexcept {
  if (mass_temperature == 0.0F) return scan_blocks<false>(logits, num_tokens, block_max, copy, 0.0F);
  return scan_blocks<true>(logits, num_tokens, block_max, copy, to_scale(mass_temperature));
}

}  // namespace
}  // namespace precast
