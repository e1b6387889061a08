// SPDX-License-Identifier: Apache-2.0
// How the results of splits become a row's output. Inside this op only.
#pragma once

#include <cstddef>

#include "plugins/cpu/math.h"

namespace precast {

// One row's result of one split, or of several that were merged: M, L and A of the schema.
struct RowResult {
  float& max;
  float& sum;
  float* weighted;  // [head_dim]
};

// Takes over the first split of a row.
[[maybe_unused]] static inline void start(const RowResult& total, const RowResult& split,
                                          std::size_t head_dim) noexcept {
  total.max = split.max;
  total.sum = split.sum;
  for (std::size_t d = 0; d < head_dim; ++d) total.weighted[d] = split.weighted[d];
}

// Adds the next split of the row, in ascending order, to those before it.
[[maybe_unused]] static inline void merge(const RowResult& total, const RowResult& split,
                                          std::size_t head_dim) noexcept {
  const float max = split.max > total.max ? split.max : total.max;
  const float total_factor = math::exp(total.max - max);
  const float split_factor = math::exp(split.max - max);
  total.max = max;
  total.sum = total.sum * total_factor + split.sum * split_factor;
  for (std::size_t d = 0; d < head_dim; ++d) {
    total.weighted[d] = total.weighted[d] * total_factor + split.weighted[d] * split_factor;
  }
}

[[maybe_unused]] static inline void finish(const RowResult& total, float* output, std::size_t head_dim) noexcept {
  const float reciprocal = 1.0f / total.sum;
  for (std::size_t d = 0; d < head_dim; ++d) output[d] = total.weighted[d] * reciprocal;
}

}  // namespace precast
