// SPDX-License-Identifier: Apache-2.0
// The compiler's vector intrinsics, for kernels of level avx2. Only files named *_avx2.cpp include this.
#pragma once

#include <immintrin.h>

#include <cstddef>

namespace precast {

// The first `count` of 8 lanes, as masked loads and stores want them; all of them if there are more.
[[maybe_unused]] static inline __m256i first_lanes(std::size_t count) noexcept {
  const int n = count < 8 ? static_cast<int>(count) : 8;
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// The first `count` of 8 numbers, zeros in the other lanes. What is not wanted is not read.
[[maybe_unused]] static inline __m256 load_first(const float* from, std::size_t count) noexcept {
  return count >= 8 ? _mm256_loadu_ps(from) : _mm256_maskload_ps(from, first_lanes(count));
}

// Stores the first `count` lanes. Whole vectors go another way: some processors are slow at masked stores.
[[maybe_unused]] static inline void store_first(float* to, std::size_t count, __m256 values) noexcept {
  if (count >= 8) {
    _mm256_storeu_ps(to, values);
  } else {
    _mm256_maskstore_ps(to, first_lanes(count), values);
  }
}

// What is left of `count` after `n`.
[[maybe_unused]] static inline std::size_t without_first(std::size_t n, std::size_t count) noexcept {
  return count > n ? count - n : 0;
}

// Of 8 pairs of bf16 the elements with the even or the odd index (lower or upper half), as fp32.
[[maybe_unused]] static inline __m256 even_of_pairs(__m256i pairs) noexcept {
  return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
}
[[maybe_unused]] static inline __m256 odd_of_pairs(__m256i pairs) noexcept {
  return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(-0x10000)));
}

// Rounds 8 numbers to bf16, as round_to_bf16 in bf16.h does, and leaves them in fp32.
[[maybe_unused]] static inline __m256 rounded_to_bf16(__m256 values) noexcept {
  const __m256i bits = _mm256_castps_si256(values);
  const __m256i is_odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i carried = _mm256_add_epi32(bits, _mm256_add_epi32(is_odd, _mm256_set1_epi32(0x7FFF)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x00400000));
  const __m256 is_nan = _mm256_cmp_ps(values, values, _CMP_UNORD_Q);
  const __m256 chosen = _mm256_blendv_ps(_mm256_castsi256_ps(carried), _mm256_castsi256_ps(quiet), is_nan);
  return odd_of_pairs(_mm256_castps_si256(chosen));
}

}  // namespace precast
