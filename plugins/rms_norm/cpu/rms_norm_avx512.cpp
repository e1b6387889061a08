// SPDX-License-Identifier: Apache-2.0
#include "plugins/cpu/avx512.h"
#include "plugins/rms_norm/cpu/rms_norm_row.h"

namespace precast {
namespace {

constexpr std::size_t num_lanes = 16;
constexpr std::size_t num_vectors = rms_norm_partial_sums / num_lanes;

// Partial sums 16v .. 16v+15 of the schema are the lanes of partial[v].
float combine(const __m512 (&partial)[num_vectors]) noexcept {
  const __m512 sum16 = _mm512_add_ps(_mm512_add_ps(partial[0], partial[2]), _mm512_add_ps(partial[1], partial[3]));
  const __m256 sum8 = _mm256_add_ps(_mm512_castps512_ps256(sum16), _mm512_extractf32x8_ps(sum16, 1));
  const __m128 sum4 = _mm_add_ps(_mm256_castps256_ps128(sum8), _mm256_extractf128_ps(sum8, 1));
  const __m128 sum2 = _mm_add_ps(sum4, _mm_movehl_ps(sum4, sum4));
  return _mm_cvtss_f32(_mm_add_ss(sum2, _mm_movehdup_ps(sum2)));
}

float square_root(float x) noexcept { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x))); }

// Adds the residual, if there is one, on the way: the row is read once.
float sum_of_squares(const RmsNormRow& row) noexcept {
  __m512 partial[num_vectors] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
  for (std::size_t first = 0; first < row.hidden_size; first += rms_norm_partial_sums) {
    for (std::size_t v = 0; v < num_vectors; ++v) {
      const std::size_t i = first + v * num_lanes;
      if (i >= row.hidden_size) break;
      const __mmask16 lanes = first_lanes(row.hidden_size - i);
      __m512 value = _mm512_maskz_loadu_ps(lanes, row.x + i);
      if (row.residual != nullptr) {
        value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(lanes, row.residual + i));
        _mm512_mask_storeu_ps(row.sum + i, lanes, value);
      }
      partial[v] = _mm512_fmadd_ps(value, value, partial[v]);
    }
  }
  return combine(partial);
}

}  // namespace

void rms_norm_row_avx512(const RmsNormRow& row) noexcept {
  const float mean = sum_of_squares(row) / static_cast<float>(row.hidden_size);
  const __m512 scale = _mm512_set1_ps(1.0f / square_root(mean + row.epsilon));
  const float* const values = row.residual == nullptr ? row.x : row.sum;
  for (std::size_t i = 0; i < row.hidden_size; i += num_lanes) {
    const __mmask16 lanes = first_lanes(row.hidden_size - i);
    const __m512 scaled = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, values + i), scale);
    _mm512_mask_storeu_ps(row.y + i, lanes, _mm512_mul_ps(scaled, _mm512_maskz_loadu_ps(lanes, row.weight + i)));
  }
}

}  // namespace precast
