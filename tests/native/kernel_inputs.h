// What tests of several ops' kernels need.
#pragma once

#include <cstddef>
#include <cstring>
#include <iostream>
#include <random>
#include <vector>

#include "plugins/cpu/kernel.h"

namespace precast::test {

// The kernel levels that can run here. Portable always is one; the first call says which ones are not.
inline const std::vector<KernelLevel>& levels_of_this_machine() {
  static const std::vector<KernelLevel> levels = [] {
    std::vector<KernelLevel> supported;
    for (const KernelLevel level : all_kernel_levels) {
      if (supports(level)) {
        supported.push_back(level);
      } else {
        std::cout << "not tested: kernel level " << name(level) << ", for this processor has no "
                  << missing_feature(level) << "\n";
      }
    }
    return supported;
  }();
  return levels;
}

// Numbers of a normal distribution around 0, the same for the same seed.
inline std::vector<float> random_values(std::size_t count, unsigned seed, float deviation = 1.0f) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> values(count);
  for (float& value : values) value = normal(generator);
  return values;
}

// Equal also where both are the same NaN; +0 and -0 differ.
inline bool same_bits(const float* a, const float* b, std::size_t count) {
  return std::memcmp(a, b, count * sizeof(float)) == 0;
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && same_bits(a.data(), b.data(), a.size());
}

}  // namespace precast::test
