// SPDX-License-Identifier: Apache-2.0
#include "plugins/cpu/math_avx512.h"
#include "plugins/paged_attention/cpu/attend_words.h"

namespace precast {
namespace {

struct Avx512 {
  using Line = __m512;
  using Lanes = __mmask16;

  // Of the 32 registers 24 hold sums.
  static constexpr std::size_t max_rows = 6;
  static constexpr std::size_t columns_at_once(std::size_t /*rows*/) noexcept { return 4; }

  static Line zero() noexcept { return _mm512_setzero_ps(); }
  static Line broadcast(float x) noexcept { return _mm512_set1_ps(x); }
  static Line load(const float* from) noexcept { return _mm512_loadu_ps(from); }
  static void store(float* to, Line line) noexcept { _mm512_storeu_ps(to, line); }
  static Lanes first_lanes(std::size_t count) noexcept { return precast::first_lanes(count); }
  static Line load(const float* from, Lanes lanes) noexcept { return _mm512_maskz_loadu_ps(lanes, from); }
  static void store(float* to, Lanes lanes, Line line) noexcept { _mm512_mask_storeu_ps(to, lanes, line); }
  static Line choose(Lanes lanes, Line a, Line b) noexcept { return _mm512_mask_mov_ps(b, lanes, a); }
  static Line masked(Line line, Word bits) noexcept {
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(line), _mm512_set1_epi32(static_cast<int>(bits))));
  }
  static Line add(Line a, Line b) noexcept { return _mm512_add_ps(a, b); }
  static Line subtract(Line a, Line b) noexcept { return _mm512_sub_ps(a, b); }
  static Line multiply(Line a, Line b) noexcept { return _mm512_mul_ps(a, b); }
  static Line max(Line a, Line b) noexcept { return _mm512_max_ps(a, b); }
  static Line exp(Line x) noexcept { return math_avx512::exp(x); }
  static float max_of_lanes(Line line) noexcept { return _mm512_reduce_max_ps(line); }
  static float sum_of_lanes(Line sum16) noexcept {
    const __m256 sum8 = _mm256_add_ps(_mm512_castps512_ps256(sum16), _mm512_extractf32x8_ps(sum16, 1));
    const __m128 sum4 = _mm_add_ps(_mm256_castps256_ps128(sum8), _mm256_extractf128_ps(sum8, 1));
    const __m128 sum2 = _mm_add_ps(sum4, _mm_movehl_ps(sum4, sum4));
    return _mm_cvtss_f32(_mm_add_ss(sum2, _mm_movehdup_ps(sum2)));
  }
};

struct F32Cache {
  using Vectors = Avx512;
  static constexpr std::size_t elements_per_word = 1;

  static __m512 multiply_add(Word word, __m512 line, __m512 sum) noexcept {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(word))), line, sum);
  }

  static void store(Word* row, std::size_t tile, __m512 e) noexcept {
    _mm512_store_ps(reinterpret_cast<float*>(row + tile * num_lanes), e);
  }
};

struct Bf16Cache {
  using Vectors = Avx512;
  static constexpr std::size_t elements_per_word = 2;

  static __m512 multiply_add(Word word, __m512 line, __m512 sum) noexcept {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(word))),
                            reinterpret_cast<__m512bh>(line));
  }

  static void store(Word* row, std::size_t tile, __m512 e) noexcept {
    _mm256_store_si256(reinterpret_cast<__m256i*>(row + tile * num_lanes / 2),
                       reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(e)));
  }
};

}  // namespace

void attend_split_f32_avx512(const AttendSplitArgs& args) noexcept { attend<F32Cache>(args); }
void attend_split_bf16_avx512(const AttendSplitArgs& args) noexcept { attend<Bf16Cache>(args); }

}  // namespace precast
