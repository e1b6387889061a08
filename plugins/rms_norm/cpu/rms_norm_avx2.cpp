// SPDX-License-Identifier: Apache-2.0
#include "plugins/cpu/avx2.h"
#include "plugins/rms_norm/cpu/rms_norm_row.h"

namespace precast {
namespace {

constexpr std::size_t num_lanes = 8;
constexpr std::size_t num_vectors = rms_norm_partial_sums / num_lanes;

// Partial sums 8v .. 8v+7 of the schema are the lanes of partial[v].
float combine(__m256 (&partial)[num_vectors]) noexcept {
  for (std::size_t width = num_vectors / 2; width > 0; width /= 2) {
    for (std::size_t v = 0; v < width; ++v) partial[v] = _mm256_add_ps(partial[v], partial[v + width]);
  }
  const __m128 sum4 = _mm_add_ps(_mm256_castps256_ps128(partial[0]), _mm256_extractf128_ps(partial[0], 1));
  const __m128 sum2 = _mm_add_ps(sum4, _mm_movehl_ps(sum4, sum4));
  return _mm_cvtss_f32(_mm_add_ss(sum2, _mm_movehdup_ps(sum2)));
}

float square_root(float x) noexcept { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x))); }

// Adds the residual, if there is one, on the way: the row is read once.
float sum_of_squares(const RmsNormRow& row) noexcept {
  __m256 partial[num_vectors];
  for (__m256& sum : partial) sum = _mm256_setzero_ps();
  for (std::size_t first = 0; first < row.hidden_size; first += rms_norm_partial_sums) {
#pragma GCC unroll 8
    for (std::size_t v = 0; v < num_vectors; ++v) {
      const std::size_t i = first + v * num_lanes;
      const std::size_t count = without_first(i, row.hidden_size);
      if (count == 0) break;
      __m256 value = load_first(row.x + i, count);
      if (row.residual != nullptr) {
        value = _mm256_add_ps(value, load_first(row.residual + i, count));
        store_first(row.sum + i, count, value);
      }
      partial[v] = _mm256_fmadd_ps(value, value, partial[v]);
    }
  }
  return combine(partial);
}

}  // namespace

void rms_norm_row_avx2(const RmsNormRow& row) noexcept {
  const float mean = sum_of_squares(row) / static_cast<float>(row.hidden_size);
  const __m256 scale = _mm256_set1_ps(1.0f / square_root(mean + row.epsilon));
  const float* const values = row.residual == nullptr ? row.x : row.sum;
  for (std::size_t i = 0; i < row.hidden_size; i += num_lanes) {
    const std::size_t count = row.hidden_size - i;
    const __m256 scaled = _mm256_mul_ps(load_first(values + i, count), scale);
    store_first(row.y + i, count, _mm256_mul_ps(scaled, load_first(row.weight + i, count)));
  }
}

}  // namespace precast
