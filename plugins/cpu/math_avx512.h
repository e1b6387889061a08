// SPDX-License-Identifier: Apache-2.0
// Elementary functions on 16 fp32 at once, for kernels of level avx512: what math.h says, with fused multiply-adds.
// Only files named *_avx512.cpp include this.
#pragma once

#include "plugins/cpu/avx512.h"

namespace precast::math_avx512 {

// exp(x), below 2 ulp; math.h has the method and the edges.
[[maybe_unused]] static inline __m512 exp(__m512 x) noexcept {
  // The bound goes first: min and max return their second operand if one is NaN.
  x = _mm512_max_ps(_mm512_set1_ps(-104.0f), x);
  x = _mm512_min_ps(_mm512_set1_ps(89.0f), x);
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 q = _mm512_set1_ps(0.00138145988f);
  q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(0.00836871658f));
  q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(0.041668389f));
  q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(0.166665211f));
  q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(0.49999994f));
  const __m512 y = _mm512_add_ps(_mm512_fmadd_ps(_mm512_mul_ps(r, r), q, r), _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(y, n);
}

// x * sigmoid(x), also called swish.
[[maybe_unused]] static inline __m512 silu(__m512 x) noexcept {
  // Not 0 - x: that would turn a NaN's sign and, at 0, lose the sign of zero.
  const __m512 minus_x = _mm512_xor_ps(x, _mm512_set1_ps(-0.0f));
  return _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1.0f), exp(minus_x)));
}

}  // namespace precast::math_avx512
