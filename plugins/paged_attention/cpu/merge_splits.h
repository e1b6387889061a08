// SPDX-License-Identifier: Apache-2.0
// The running result of a row over the splits of its context. Inside this op only.
#pragma once

#include <cstddef>
#include <limits>

#include "plugins/cpu/math.h"

namespace precast {

// M, L and A of the schema.
struct RowState {
  float max;
  float sum;
  float* weighted;  // [head_dim]
};

[[maybe_unused]] static inline void start(RowState& state, std::size_t head_dim) noexcept {
  state.max = -std::numeric_limits<float>::infinity();
  state.sum = 0.0f;
  for (std::size_t d = 0; d < head_dim; ++d) state.weighted[d] = 0.0f;
}

// Takes in the next split of the row, in ascending order.
[[maybe_unused]] static inline void merge(RowState& state, float max, float sum, const float* weighted,
                                          std::size_t head_dim) noexcept {
  const float new_max = max > state.max ? max : state.max;
  const float old_factor = math::exp(state.max - new_max);
  const float new_factor = math::exp(max - new_max);
  state.sum = state.sum * old_factor + sum * new_factor;
  for (std::size_t d = 0; d < head_dim; ++d) {
    state.weighted[d] = state.weighted[d] * old_factor + weighted[d] * new_factor;
  }
  state.max = new_max;
}

[[maybe_unused]] static inline void finish(const RowState& state, float* output, std::size_t head_dim) noexcept {
  const float reciprocal = 1.0f / state.sum;
  for (std::size_t d = 0; d < head_dim; ++d) output[d] = state.weighted[d] * reciprocal;
}

}  // namespace precast
