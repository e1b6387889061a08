#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "runtime/native/src/sampling/row_kernels.h"

namespace precast {

/// Finds the most likely tokens of a row without sorting it. Scratch memory only.
class TokenSelection {
 public:
  explicit TokenSelection(const RowKernels& kernels) : kernels_(kernels) {}

  /// The `count` most likely tokens, in no order but that the last of them stands last; all tokens if there are fewer.
  /// `count` >= 1. Valid until the next call.
  std::span<Place> most_likely(const Row& row, std::size_t count);

 private:
  float find_bound(const Row& row, std::size_t count);

  const RowKernels& kernels_;
  std::vector<float> block_max_;
  std::vector<Place> places_;
};

/// Where the tokens end whose probability is at least `min_p` > 0 times the largest one.
Place end_of_min_p(const Row& row, float temperature, float min_p);

/// The id of the largest logit, the smallest among equals.
std::int32_t find_most_likely(const Row& row);

}  // namespace precast
