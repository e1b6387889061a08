// SPDX-License-Identifier: Apache-2.0
// Elementary functions on 8 fp32 at once, for kernels of level avx2: what math.h says, with fused multiply-adds. Only
// files named *_avx2.cpp include this.
#pragma once

#include "plugins/cpu/avx2.h"

namespace precast::math_avx2 {

// exp(x), below 2 ulp; math.h has the method and the edges.
[[maybe_unused]] static inline __m256 exp(__m256 x) noexcept {
  // The bound goes first: min and max return their second operand if one is NaN.
  x = _mm256_max_ps(_mm256_set1_ps(-104.0f), x);
  x = _mm256_min_ps(_mm256_set1_ps(89.0f), x);
  const __m256 n =
      _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
  __m256 q = _mm256_set1_ps(0.00138145988f);
  q = _mm256_fmadd_ps(q, r, _mm256_set1_ps(0.00836871658f));
  q = _mm256_fmadd_ps(q, r, _mm256_set1_ps(0.041668389f));
  q = _mm256_fmadd_ps(q, r, _mm256_set1_ps(0.166665211f));
  q = _mm256_fmadd_ps(q, r, _mm256_set1_ps(0.49999994f));
  const __m256 y = _mm256_add_ps(_mm256_fmadd_ps(_mm256_mul_ps(r, r), q, r), _mm256_set1_ps(1.0f));
  // 2^n alone may not be an fp32 (n is -150 .. 128): two factors, and only the last product rounds.
  const __m256i k = _mm256_cvtps_epi32(n);
  const __m256i half = _mm256_srai_epi32(k, 1);
  const auto power_of_two = [](__m256i e) noexcept {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e, _mm256_set1_epi32(127)), 23));
  };
  return _mm256_mul_ps(_mm256_mul_ps(y, power_of_two(half)), power_of_two(_mm256_sub_epi32(k, half)));
}

// x * sigmoid(x), also called swish.
[[maybe_unused]] static inline __m256 silu(__m256 x) noexcept {
  // Not 0 - x: that would turn a NaN's sign and, at 0, lose the sign of zero.
  const __m256 minus_x = _mm256_xor_ps(x, _mm256_set1_ps(-0.0f));
  return _mm256_div_ps(x, _mm256_add_ps(_mm256_set1_ps(1.0f), exp(minus_x)));
}

}  // namespace precast::math_avx2
