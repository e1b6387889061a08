// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include "plugins/rms_norm/cpu/rms_norm_row.h"

namespace precast {
namespace {

// The row that is normalised: x, or x + residual, which is also written.
const float* add_residual(const RmsNormRow& row) noexcept {
  if (row.residual == nullptr) return row.x;
  for (std::size_t i = 0; i < row.hidden_size; ++i) row.sum[i] = row.x[i] + row.residual[i];
  return row.sum;
}

float sum_of_squares(const float* values, std::size_t count) noexcept {
  float partial[rms_norm_partial_sums] = {};
  for (std::size_t first = 0; first < count; first += rms_norm_partial_sums) {
    const std::size_t n = std::min(rms_norm_partial_sums, count - first);
    for (std::size_t j = 0; j < n; ++j) partial[j] += values[first + j] * values[first + j];
  }
  for (std::size_t width = rms_norm_partial_sums / 2; width > 0; width /= 2) {
    for (std::size_t j = 0; j < width; ++j) partial[j] += partial[j + width];
  }
  return partial[0];
}

}  // namespace

void rms_norm_row_portable(const RmsNormRow& row) noexcept {
  const float* const values = add_residual(row);
  const float mean = sum_of_squares(values, row.hidden_size) / static_cast<float>(row.hidden_size);
  const float scale = 1.0f / std::sqrt(mean + row.epsilon);
  for (std::size_t i = 0; i < row.hidden_size; ++i) row.y[i] = (values[i] * scale) * row.weight[i];
}

}  // namespace precast
