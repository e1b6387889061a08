// SPDX-License-Identifier: Apache-2.0
// Both caches are streams of 64-byte lines of 32-bit words, a word being one fp32 or a pair of bf16, and differ only in
// how a word is multiplied:
//
//                     fp32                        bf16
//     q row           D words                     D/2 words (pairs of dims)
//     K tile          D lines of 16 tokens        D/2 lines of 16 tokens
//     probabilities   512 words                   256 words (pairs of tokens)
//     V tile          16 rows of D words          8 rows of D words (pairs of tokens)
//
// Every sum is one chain of additions in the schema's order, whichever rows and columns share the registers.
#include "plugins/cpu/avx512.h"
#include "plugins/cpu/math_avx512.h"
#include "plugins/paged_attention/cpu/attend_split.h"
#include "plugins/paged_attention/cpu/kv_tile.h"

namespace precast {
namespace {

// Reads what others wrote as fp32 or bf16.
using Word [[gnu::may_alias]] = std::uint32_t;

constexpr std::size_t num_lanes = 16;
// Registers: rows x columns sums, one vector per column, one broadcast word.
constexpr std::size_t max_rows = 6;
constexpr std::size_t max_columns = 4;

struct F32Cache {
  static constexpr std::size_t elements_per_word = 1;

  static __m512 multiply_add(Word word, __m512 line, __m512 sum) noexcept {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(word))), line, sum);
  }

  // Stores 16 probabilities of tile `tile`.
  static void store(Word* row, std::size_t tile, __m512 e) noexcept {
    _mm512_store_ps(reinterpret_cast<float*>(row + tile * num_lanes), e);
  }
};

struct Bf16Cache {
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

// One call of the kernel, seen as words.
template <typename Cache>
struct Split {
  static constexpr std::size_t v_rows_per_tile = tokens_per_tile / Cache::elements_per_word;

  explicit Split(const AttendSplitArgs& split_args) noexcept
      : args(split_args), head_dim(split_args.head_dim), q_words(split_args.head_dim / Cache::elements_per_word) {}

  const Word* q(std::size_t row) const noexcept { return static_cast<const Word*>(args.q) + row * q_words; }
  float* scores(std::size_t row) const noexcept { return args.scores + row * tokens_per_split; }
  // Probabilities take the place of the scores that they were made of.
  Word* probabilities(std::size_t row) const noexcept { return reinterpret_cast<Word*>(scores(row)); }
  float* weighted(std::size_t row) const noexcept { return args.result.weighted + row * head_dim; }
  const float* k_tile(std::size_t tile) const noexcept { return reinterpret_cast<const float*>(args.tiles[tile]); }
  const float* v_tile(std::size_t tile) const noexcept { return k_tile(tile) + q_words * num_lanes; }

  // Fetches from memory go on all the time, in step with computing: while K is read, V of the same tiles is prefetched,
  // and while V is read, K of the next split.
  void prefetch_v(std::size_t tile, std::size_t line) const noexcept { prefetch(v_tile(tile), line); }
  void prefetch_next_k(std::size_t tile, std::size_t line) const noexcept {
    if (tile < args.num_next_tiles) prefetch(reinterpret_cast<const float*>(args.next_tiles[tile]), line);
  }
  static void prefetch(const float* tile, std::size_t line) noexcept {
    _mm_prefetch(reinterpret_cast<const char*>(tile + line * num_lanes), _MM_HINT_T1);
  }

  const AttendSplitArgs& args;
  std::size_t head_dim;
  std::size_t q_words;
};

// Calls f<n>() for a number 1 <= n <= Max that only becomes known when the program runs.
template <std::size_t Max, typename F>
void with_constant(std::size_t n, const F& f) noexcept {
  if constexpr (Max == 1) {
    f.template operator()<1>();
  } else {
    if (n == Max) return f.template operator()<Max>();
    with_constant<Max - 1>(n, f);
  }
}

std::size_t smaller(std::size_t a, std::size_t b) noexcept { return a < b ? a : b; }

// Tiles that hold `num_tokens` tokens, the last one perhaps in part.
std::size_t tiles_of(std::size_t num_tokens) noexcept { return (num_tokens + tokens_per_tile - 1) / tokens_per_tile; }

// Scores of Rows rows against Tiles tiles.
template <typename Cache, std::size_t Rows, std::size_t Tiles>
void score_block(const Split<Cache>& split, std::size_t first_row, std::size_t first_tile) noexcept {
  __m512 sums[Rows][Tiles];
  for (auto& row : sums) {
    for (__m512& sum : row) sum = _mm512_setzero_ps();
  }
  const Word* const q = split.q(first_row);
  const float* tiles[Tiles];
  for (std::size_t t = 0; t < Tiles; ++t) tiles[t] = split.k_tile(first_tile + t);
  const bool is_first = first_row == 0;
  for (std::size_t w = 0; w < split.q_words; ++w) {
    __m512 lines[Tiles];
    if (is_first) {
      for (std::size_t t = 0; t < Tiles; ++t) split.prefetch_v(first_tile + t, w);
    }
    for (std::size_t t = 0; t < Tiles; ++t) lines[t] = _mm512_loadu_ps(tiles[t] + w * num_lanes);
    for (std::size_t r = 0; r < Rows; ++r) {
      const Word word = q[r * split.q_words + w];
      for (std::size_t t = 0; t < Tiles; ++t) sums[r][t] = Cache::multiply_add(word, lines[t], sums[r][t]);
    }
  }
  const __m512 scale = _mm512_set1_ps(split.args.scale);
  for (std::size_t r = 0; r < Rows; ++r) {
    float* const scores = split.scores(first_row + r) + first_tile * tokens_per_tile;
    for (std::size_t t = 0; t < Tiles; ++t) _mm512_store_ps(scores + t * num_lanes, _mm512_mul_ps(sums[r][t], scale));
  }
}

// Scores of all rows. A few tiles stay in the first-level cache while all rows pass over them.
template <typename Cache>
void score_rows(const Split<Cache>& split) noexcept {
  const AttendSplitArgs& args = split.args;
  const std::size_t num_tiles = tiles_of(args.num_visible[args.num_rows - 1]);
  for (std::size_t tile = 0; tile < num_tiles; tile += max_columns) {
    for (std::size_t row = 0; row < args.num_rows; row += max_rows) {
      const std::size_t rows = smaller(max_rows, args.num_rows - row);
      if (tile >= tiles_of(args.num_visible[row + rows - 1])) continue;
      with_constant<max_rows>(rows, [&]<std::size_t Rows>() noexcept {
        with_constant<max_columns>(smaller(max_columns, num_tiles - tile), [&]<std::size_t Tiles>() noexcept {
          score_block<Cache, Rows, Tiles>(split, row, tile);
        });
      });
    }
  }
}

float sum_of_lanes(__m512 sum16) noexcept {
  const __m256 sum8 = _mm256_add_ps(_mm512_castps512_ps256(sum16), _mm512_extractf32x8_ps(sum16, 1));
  const __m128 sum4 = _mm_add_ps(_mm256_castps256_ps128(sum8), _mm256_extractf128_ps(sum8, 1));
  const __m128 sum2 = _mm_add_ps(sum4, _mm_movehl_ps(sum4, sum4));
  return _mm_cvtss_f32(_mm_add_ss(sum2, _mm_movehdup_ps(sum2)));
}

// 16 scores of a row; those that it does not see are -infinity, so that their probability is exactly 0.
__m512 load_visible(const float* scores, std::size_t tile, std::size_t num_visible) noexcept {
  const __mmask16 visible = first_lanes(num_visible - tile * num_lanes);
  return _mm512_mask_load_ps(_mm512_set1_ps(-__builtin_inff()), visible, scores + tile * num_lanes);
}

template <typename Cache>
void softmax_row(const Split<Cache>& split, std::size_t row) noexcept {
  const std::size_t num_visible = split.args.num_visible[row];
  const std::size_t num_tiles = tiles_of(num_visible);
  const float* const scores = split.scores(row);
  __m512 largest = load_visible(scores, 0, num_visible);
  for (std::size_t t = 1; t < num_tiles; ++t) largest = _mm512_max_ps(largest, load_visible(scores, t, num_visible));
  const float max = _mm512_reduce_max_ps(largest);
  const __m512 max16 = _mm512_set1_ps(max);
  __m512 sum = _mm512_setzero_ps();
  for (std::size_t t = 0; t < num_tiles; ++t) {
    const __m512 e = math_avx512::exp(_mm512_sub_ps(load_visible(scores, t, num_visible), max16));
    sum = _mm512_add_ps(sum, e);
    Cache::store(split.probabilities(row), t, e);
  }
  split.args.result.max[row] = max;
  split.args.result.sum[row] = sum_of_lanes(sum);
}

// Adds V rows first_v_row .. end_v_row - 1 of the split, weighted, to Columns vectors of Rows rows from column `d` on.
template <typename Cache, std::size_t Rows, std::size_t Columns>
void add_block(const Split<Cache>& split, std::size_t first_row, std::size_t d, std::size_t first_v_row,
               std::size_t end_v_row) noexcept {
  constexpr std::size_t v_rows_per_tile = Split<Cache>::v_rows_per_tile;
  __mmask16 lanes[Columns];
  for (std::size_t c = 0; c < Columns; ++c) lanes[c] = first_lanes(split.head_dim - d - c * num_lanes);
  __m512 sums[Rows][Columns];
#pragma GCC unroll 8
  for (std::size_t r = 0; r < Rows; ++r) {
    const float* const weighted = split.weighted(first_row + r) + d;
#pragma GCC unroll 8
    for (std::size_t c = 0; c < Columns; ++c) sums[r][c] = _mm512_maskz_loadu_ps(lanes[c], weighted + c * num_lanes);
  }
  const Word* const probabilities = split.probabilities(first_row);
  const bool is_first = first_row == 0;
  const std::size_t first_column = d / num_lanes;
  const std::size_t num_columns = (split.head_dim + num_lanes - 1) / num_lanes;
  for (std::size_t v_row = first_v_row; v_row < end_v_row; ++v_row) {
    const float* const v =
        split.v_tile(v_row / v_rows_per_tile) + v_row % v_rows_per_tile * split.head_dim + d;
    if (is_first) {
      for (std::size_t c = 0; c < Columns; ++c) {
        const std::size_t line = v_row % v_rows_per_tile * num_columns + first_column + c;
        split.prefetch_next_k(v_row / v_rows_per_tile, line);
      }
    }
    __m512 lines[Columns];
    for (std::size_t c = 0; c < Columns; ++c) lines[c] = _mm512_maskz_loadu_ps(lanes[c], v + c * num_lanes);
#pragma GCC unroll 8
    for (std::size_t r = 0; r < Rows; ++r) {
      const Word word = probabilities[r * tokens_per_split + v_row];
#pragma GCC unroll 8
      for (std::size_t c = 0; c < Columns; ++c) sums[r][c] = Cache::multiply_add(word, lines[c], sums[r][c]);
    }
  }
#pragma GCC unroll 8
  for (std::size_t r = 0; r < Rows; ++r) {
    float* const weighted = split.weighted(first_row + r) + d;
#pragma GCC unroll 8
    for (std::size_t c = 0; c < Columns; ++c) _mm512_mask_storeu_ps(weighted + c * num_lanes, lanes[c], sums[r][c]);
  }
}

// The same for whole rows of V.
template <typename Cache>
void add_values(const Split<Cache>& split, std::size_t first_row, std::size_t num_rows, std::size_t first_v_row,
                std::size_t end_v_row) noexcept {
  if (first_v_row >= end_v_row) return;
  const std::size_t num_columns = (split.head_dim + num_lanes - 1) / num_lanes;
  for (std::size_t column = 0; column < num_columns; column += max_columns) {
    with_constant<max_rows>(num_rows, [&]<std::size_t Rows>() noexcept {
      with_constant<max_columns>(smaller(max_columns, num_columns - column), [&]<std::size_t Columns>() noexcept {
        add_block<Cache, Rows, Columns>(split, first_row, column * num_lanes, first_v_row, end_v_row);
      });
    });
  }
}

// The last token that a row sees, if its pair's other token is later: that one's V is not multiplied, not even by 0.
void add_half_pair(const Split<Bf16Cache>& split, std::size_t row, std::size_t v_row) noexcept {
  constexpr std::size_t v_rows_per_tile = Split<Bf16Cache>::v_rows_per_tile;
  const float* const v = split.v_tile(v_row / v_rows_per_tile) + v_row % v_rows_per_tile * split.head_dim;
  float* const weighted = split.weighted(row);
  const Word word = split.probabilities(row)[v_row] & 0xFFFFu;
  for (std::size_t d = 0; d < split.head_dim; d += num_lanes) {
    const __mmask16 lanes = first_lanes(split.head_dim - d);
    const __m512i pairs = _mm512_maskz_loadu_epi32(lanes, v + d);
    const __m512 line = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(0xFFFF)));
    const __m512 sum = Bf16Cache::multiply_add(word, line, _mm512_maskz_loadu_ps(lanes, weighted + d));
    _mm512_mask_storeu_ps(weighted + d, lanes, sum);
  }
}

void add_half_pair(const Split<F32Cache>&, std::size_t, std::size_t) noexcept {}

// All rows together over the V rows that each of them sees in full, then each row alone over what else it sees.
template <typename Cache>
void weigh_values(const Split<Cache>& split) noexcept {
  constexpr std::size_t v_rows_per_group = max_columns * Split<Cache>::v_rows_per_tile;
  const AttendSplitArgs& args = split.args;
  const auto full_v_rows = [&](std::size_t row) { return args.num_visible[row] / Cache::elements_per_word; };
  for (std::size_t r = 0; r < args.num_rows; ++r) {
    for (std::size_t d = 0; d < split.head_dim; ++d) split.weighted(r)[d] = 0.0f;
  }
  const std::size_t num_v_rows = full_v_rows(args.num_rows - 1);
  for (std::size_t v_row = 0; v_row < num_v_rows; v_row += v_rows_per_group) {
    for (std::size_t row = 0; row < args.num_rows; row += max_rows) {
      const std::size_t rows = smaller(max_rows, args.num_rows - row);
      add_values(split, row, rows, v_row, smaller(v_row + v_rows_per_group, full_v_rows(row)));
    }
  }
  for (std::size_t row = 0; row < args.num_rows; ++row) {
    const std::size_t done = full_v_rows(row - row % max_rows);
    add_values(split, row, 1, done, full_v_rows(row));
    if (args.num_visible[row] % Cache::elements_per_word != 0) add_half_pair(split, row, full_v_rows(row));
  }
}

template <typename Cache>
void attend(const AttendSplitArgs& args) noexcept {
  const Split<Cache> split(args);
  score_rows(split);
  for (std::size_t row = 0; row < args.num_rows; ++row) softmax_row(split, row);
  weigh_values(split);
}

}  // namespace

void attend_split_f32_avx512(const AttendSplitArgs& args) noexcept { attend<F32Cache>(args); }
void attend_split_bf16_avx512(const AttendSplitArgs& args) noexcept { attend<Bf16Cache>(args); }

}  // namespace precast
