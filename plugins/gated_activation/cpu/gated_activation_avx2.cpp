// SPDX-License-Identifier: Apache-2.0
#include "plugins/cpu/math_avx2.h"
#include "plugins/gated_activation/cpu/gated_activation_range.h"

namespace precast {

void silu_range_avx2(const float* gate, const float* up, float* output, std::size_t count) noexcept {
  for (std::size_t i = 0; i < count; i += 8) {
    const __m256 activated = math_avx2::silu(load_first(gate + i, count - i));
    store_first(output + i, count - i, _mm256_mul_ps(activated, load_first(up + i, count - i)));
  }
}

}  // namespace precast
