// Sums of probability masses.
// Compiled for each kernel level: see row_passes.h.
#pragma once

#include "runtime/native/src/sampling/row_block.h"

namespace precast {
namespace {

// 2^x for x <= 0, to 3e-7; below -126 it is 2^-126. The polynomial is a minimax fit of 2^f on [-1/2, 1/2], exact at 0.
inline F32 exp2(F32 x) noexcept {
  constexpr float rounder = 12582912.0F;  // adding 1.5 * 2^23 rounds to the nearest integer, into the low bits of the sum
  x = max(x, all(-126.0F));
  const F32 shifted = x + rounder;
  const F32 f = x - (shifted - rounder);
  F32 q = f * 0.00132647285F + 0.00967151299F;
  q = q * f + 0.0555073358F;
  q = q * f + 0.240222424F;
  q = q * f + 0.693147004F;
  q = q * f + 1.0F;
  return reinterpret_cast<F32>(reinterpret_cast<I32>(q) + (reinterpret_cast<I32>(shifted) << 23));
}

// Token i of a block adds to column i % 16 at every level, so that every level sums in one order. A column is summed in fp32
// within a block and in fp64 across blocks.
constexpr std::size_t num_columns = 16;

class MassSum {
 public:
  // `mass` of neighbours, the first of which is in column `column`.
  void add(F32 mass, std::size_t column) noexcept { block_[column / lanes] += mass; }

  void end_block() noexcept {
    HalfF32 halves[num_columns / (lanes / 2)];
    std::memcpy(halves, block_, sizeof halves);
    for (std::size_t i = 0; i < num_columns / (lanes / 2); ++i) sums_[i] += __builtin_convertvector(halves[i], F64);
    for (F32& sum : block_) sum = F32{};
  }

  void multiply(double factor) noexcept {
    for (F64& sum : sums_) sum *= factor;
  }

  double total() const noexcept {
    double columns[num_columns];
    std::memcpy(columns, sums_, sizeof columns);
    double total = 0.0;
    for (std::size_t i = 0; i < num_columns / 2; ++i) total += columns[i] + columns[num_columns / 2 + i];
    return total;
  }

 private:
  F32 block_[num_columns / lanes] = {};
  F64 sums_[num_columns / (lanes / 2)] = {};
};

}  // namespace
}  // namespace precast
