// SPDX-License-Identifier: Apache-2.0
// The CPU kernels of Linear. What it computes, and in which order, is in plugins/linear/schema.py.
#pragma once

#include <cstddef>
#include <string>

#include "plugins/cpu/kernel.h"
#include "plugins/cpu/scratch.h"
#include "plugins/cpu/weight_layout.h"

namespace precast {

// The op's attributes, as in schema.py.
struct LinearShape {
  std::size_t in_features = 0;   // K
  std::size_t out_features = 0;  // N
  WeightLayout layout = WeightLayout::x16k1_f32;
};

// One call. Arrays are row-major and belong to the caller; `y` overlaps nothing else.
struct LinearArgs {
  LinearShape shape;
  std::size_t num_rows = 0;           // T
  const float* x = nullptr;           // [T, K]
  const std::byte* weight = nullptr;  // [N, K], packed; a multiple of 64 is fastest, of 4 required
  std::size_t weight_size_bytes = 0;
  const float* bias = nullptr;  // [N], or null
  float* y = nullptr;           // [T, N]
};

// Why these arguments would read out of bounds, in one sentence; empty if they would not. linear() trusts its
// arguments: whoever has not made them itself asks here first.
std::string find_error(const LinearArgs& args);

// Throws std::bad_alloc, before anything is written.
void linear(KernelLevel level, const LinearArgs& args, const ParallelFor& parallel_for, Scratch& scratch);

}  // namespace precast
