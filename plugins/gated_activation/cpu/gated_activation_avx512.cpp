// SPDX-License-Identifier: Apache-2.0
#include "plugins/cpu/math_avx512.h"
#include "plugins/gated_activation/cpu/gated_activation_range.h"

namespace precast {

void silu_range_avx512(const float* gate, const float* up, float* output, std::size_t count) noexcept {
  for (std::size_t i = 0; i < count; i += 16) {
    const __mmask16 lanes = first_lanes(count - i);
    const __m512 activated = math_avx512::silu(_mm512_maskz_loadu_ps(lanes, gate + i));
    _mm512_mask_storeu_ps(output + i, lanes, _mm512_mul_ps(activated, _mm512_maskz_loadu_ps(lanes, up + i)));
  }
}

}  // namespace precast
