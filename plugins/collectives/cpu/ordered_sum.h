// SPDX-License-Identifier: Apache-2.0
// What makes a sum over ranks the same bits everywhere, whichever way its numbers have come.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>

#include "plugins/cpu/kernel.h"

namespace precast {

inline void copy_floats(const float* from, std::size_t count, float* to) noexcept {
  if (count != 0) std::memmove(to, from, count * sizeof(float));  // an empty span may have no address
}

// y[i] = numbers(0)[i] + numbers(1)[i] + ..., in fp32 and in that order, for i < count. numbers(r): an array of tensor rank r
// of the stage. y may be one of them.
template <typename Numbers>
void ordered_sum(std::size_t num_ranks, Numbers&& numbers, std::size_t count, float* y) {
  constexpr std::size_t block = 1024;  // stays in the first cache while the ranks' numbers are added to it
  std::array<float, block> sums;
  for (std::size_t first = 0; first < count; first += block) {
    const std::size_t size = std::min(block, count - first);
    copy_floats(numbers(std::size_t{0}) + first, size, sums.data());
    for (std::size_t rank = 1; rank < num_ranks; ++rank) {
      const float* const more = numbers(rank) + first;
      for (std::size_t i = 0; i < size; ++i) sums[i] += more[i];
    }
    copy_floats(sums.data(), size, y + first);
  }
}

// Calls f(begin, end) for parts of [0, size), in the default floating-point environment: sums must not depend on what the
// thread was set to.
template <typename F>
void in_float_tasks(std::size_t size, const ParallelFor& parallel_for, F&& f) {
  constexpr std::size_t floats_per_task = 32 * 1024;
  if (size <= floats_per_task || parallel_for.threads() == 1) {
    const FloatingPointScope scope;
    f(std::size_t{0}, size);
    return;
  }
  parallel_for((size + floats_per_task - 1) / floats_per_task, [&](std::size_t task) {
    f(task * floats_per_task, std::min((task + 1) * floats_per_task, size));
  });
}

}  // namespace precast
