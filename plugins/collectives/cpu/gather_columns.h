// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>

#include "plugins/collectives/cpu/ordered_sum.h"

namespace precast {

// Of an all-gather: puts numbers [begin, begin + size) of tensor rank `rank`'s [num_rows, num_columns] where they belong in
// y, [num_rows, num_features], in which that rank's columns start at rank * num_columns. `from`: the first of them.
inline void gather_columns(const float* from, std::size_t begin, std::size_t size, std::size_t rank, std::size_t num_columns,
                           std::span<float> y, std::size_t num_features) noexcept {
  const std::size_t column = rank * num_columns;
  const std::size_t num_kept = column < num_features ? std::min(num_columns, num_features - column) : 0;
  for (std::size_t i = 0; i < size;) {
    const std::size_t row = (begin + i) / num_columns;
    const std::size_t first = (begin + i) % num_columns;
    const std::size_t last = std::min(num_columns, first + size - i);
    if (first < num_kept) {
      copy_floats(from + i, std::min(last, num_kept) - first, y.data() + row * num_features + column + first);
    }
    i += last - first;
  }
}

}  // namespace precast
