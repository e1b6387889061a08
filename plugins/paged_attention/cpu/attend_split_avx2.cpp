// SPDX-License-Identifier: Apache-2.0
#include "plugins/cpu/math_avx2.h"
#include "plugins/paged_attention/cpu/attend_words.h"

namespace precast {
namespace {

struct Avx2 {
  // Lanes 0 .. 7 and 8 .. 15.
  struct Line {
    __m256 low;
    __m256 high;
  };
  // A number and not two masks: nearly always it is all lanes, for which there are plain loads and stores.
  struct Lanes {
    std::size_t count;
  };
  static constexpr std::size_t half = num_lanes / 2;

  // Of the 16 registers 8 hold sums: a line of bf16 takes four when it has become fp32.
  static constexpr std::size_t max_rows = 4;
  static constexpr std::size_t columns_at_once(std::size_t rows) noexcept { return 4 / rows; }

  static Line zero() noexcept { return broadcast(0.0f); }
  static Line broadcast(float x) noexcept { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  static Line load(const float* from) noexcept { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + half)}; }
  static void store(float* to, Line line) noexcept {
    _mm256_storeu_ps(to, line.low);
    _mm256_storeu_ps(to + half, line.high);
  }
  static Lanes first_lanes(std::size_t count) noexcept { return {count}; }
  static Line load(const float* from, Lanes lanes) noexcept {
    if (lanes.count >= num_lanes) return load(from);
    return {load_first(from, lanes.count), load_first(from + half, without_first(half, lanes.count))};
  }
  static void store(float* to, Lanes lanes, Line line) noexcept {
    store_first(to, lanes.count, line.low);
    store_first(to + half, without_first(half, lanes.count), line.high);
  }
  static Line choose(Lanes lanes, Line a, Line b) noexcept {
    const __m256 low = _mm256_castsi256_ps(precast::first_lanes(lanes.count));
    const __m256 high = _mm256_castsi256_ps(precast::first_lanes(without_first(half, lanes.count)));
    return {_mm256_blendv_ps(b.low, a.low, low), _mm256_blendv_ps(b.high, a.high, high)};
  }
  static Line masked(Line line, Word bits) noexcept {
    const __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(bits)));
    return {_mm256_and_ps(line.low, mask), _mm256_and_ps(line.high, mask)};
  }
  static Line add(Line a, Line b) noexcept { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
  static Line subtract(Line a, Line b) noexcept {
    return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
  }
  static Line multiply(Line a, Line b) noexcept {
    return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
  }
  static Line max(Line a, Line b) noexcept { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
  static Line exp(Line x) noexcept { return {math_avx2::exp(x.low), math_avx2::exp(x.high)}; }
  static float max_of_lanes(Line line) noexcept {
    const __m256 max8 = _mm256_max_ps(line.low, line.high);
    const __m128 max4 = _mm_max_ps(_mm256_castps256_ps128(max8), _mm256_extractf128_ps(max8, 1));
    const __m128 max2 = _mm_max_ps(max4, _mm_movehl_ps(max4, max4));
    return _mm_cvtss_f32(_mm_max_ss(max2, _mm_movehdup_ps(max2)));
  }
  static float sum_of_lanes(Line sum16) noexcept {
    const __m256 sum8 = _mm256_add_ps(sum16.low, sum16.high);
    const __m128 sum4 = _mm_add_ps(_mm256_castps256_ps128(sum8), _mm256_extractf128_ps(sum8, 1));
    const __m128 sum2 = _mm_add_ps(sum4, _mm_movehl_ps(sum4, sum4));
    return _mm_cvtss_f32(_mm_add_ss(sum2, _mm_movehdup_ps(sum2)));
  }
  static Line fused(__m256 x, Line line, Line sum) noexcept {
    return {_mm256_fmadd_ps(x, line.low, sum.low), _mm256_fmadd_ps(x, line.high, sum.high)};
  }
};

struct F32Cache {
  using Vectors = Avx2;
  static constexpr std::size_t elements_per_word = 1;

  static Avx2::Line multiply_add(Word word, Avx2::Line line, Avx2::Line sum) noexcept {
    return Avx2::fused(_mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(word))), line, sum);
  }

  static void store(Word* row, std::size_t tile, Avx2::Line e) noexcept {
    Avx2::store(reinterpret_cast<float*>(row + tile * num_lanes), e);
  }
};

// There is no instruction for bf16: both factors become fp32 here.
struct Bf16Cache {
  using Vectors = Avx2;
  static constexpr std::size_t elements_per_word = 2;

  static Avx2::Line multiply_add(Word word, Avx2::Line line, Avx2::Line sum) noexcept {
    const __m256i words = _mm256_set1_epi32(static_cast<int>(word));
    const __m256i low = _mm256_castps_si256(line.low);
    const __m256i high = _mm256_castps_si256(line.high);
    const Avx2::Line with_odd = Avx2::fused(odd_of_pairs(words), {odd_of_pairs(low), odd_of_pairs(high)}, sum);
    return Avx2::fused(even_of_pairs(words), {even_of_pairs(low), even_of_pairs(high)}, with_odd);
  }

  static void store(Word* row, std::size_t tile, Avx2::Line e) noexcept {
    // The upper halves of 16 numbers, side by side. Packing works on halves of a register: the middle quarters of the
    // result change places.
    const __m256i low = _mm256_srli_epi32(_mm256_castps_si256(rounded_to_bf16(e.low)), 16);
    const __m256i high = _mm256_srli_epi32(_mm256_castps_si256(rounded_to_bf16(e.high)), 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), _MM_SHUFFLE(3, 1, 2, 0));
    _mm256_store_si256(reinterpret_cast<__m256i*>(row + tile * num_lanes / 2), packed);
  }
};

}  // namespace

void attend_split_f32_avx2(const AttendSplitArgs& args) noexcept { attend<F32Cache>(args); }
void attend_split_bf16_avx2(const AttendSplitArgs& args) noexcept { attend<Bf16Cache>(args); }

}  // namespace precast
