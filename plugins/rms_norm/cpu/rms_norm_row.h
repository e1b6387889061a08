// SPDX-License-Identifier: Apache-2.0
// One row of RmsNorm at each kernel level. For this op, and for PagedAttention, which norms heads.
#pragma once

#include <cstddef>

#include "plugins/cpu/kernel.h"

namespace precast {

// Fixed by the schema: element i is added to partial sum i % 64.
inline constexpr std::size_t rms_norm_partial_sums = 64;

// One row: pointers to its first elements. `residual` and `sum` are both null or both not.
struct RmsNormRow {
  std::size_t hidden_size;
  float epsilon;
  const float* x;
  const float* weight;
  const float* residual;
  float* y;
  float* sum;
};

using RmsNormRowKernel = void (*)(const RmsNormRow&) noexcept;

// The kernel for this level.
RmsNormRowKernel rms_norm_row_kernel(KernelLevel level) noexcept;

void rms_norm_row_portable(const RmsNormRow& row) noexcept;
void rms_norm_row_avx2(const RmsNormRow& row) noexcept;
void rms_norm_row_avx512(const RmsNormRow& row) noexcept;

}  // namespace precast
