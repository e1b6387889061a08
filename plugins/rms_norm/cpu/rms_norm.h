// SPDX-License-Identifier: Apache-2.0
// The CPU kernels of RmsNorm. What it computes, and in which order, is in plugins/rms_norm/schema.py.
#pragma once

#include <cstddef>

#include "plugins/cpu/kernel.h"

namespace precast {

// Arrays are row-major. `y` and `sum` overlap nothing else.
struct RmsNormArgs {
  std::size_t num_tokens = 0;       // T
  std::size_t hidden_size = 0;      // H
  float epsilon = 0.0f;
  const float* x = nullptr;         // [T, H]
  const float* weight = nullptr;    // [H]
  const float* residual = nullptr;  // [T, H], or null
  float* y = nullptr;               // [T, H]
  float* sum = nullptr;             // [T, H]; null exactly when residual is
};

void rms_norm(KernelLevel level, const RmsNormArgs& args, const ParallelFor& parallel_for);

}  // namespace precast
