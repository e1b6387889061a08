// SPDX-License-Identifier: Apache-2.0
#include "plugins/cpu/math_avx512.h"
#include "plugins/paged_attention/cpu/split_words_avx512.h"

namespace precast {
namespace {

// Scores of Rows rows against Tiles tiles.
template <typename Cache, std::size_t Rows, std::size_t Tiles>
void score_block(const Split<Cache>& split, std::size_t first_row, std::size_t first_tile) noexcept {
  __m512 sums[Rows][Tiles];
  PRECAST_UNROLL for (std::size_t r = 0; r < Rows; ++r) {
    PRECAST_UNROLL for (std::size_t t = 0; t < Tiles; ++t) sums[r][t] = _mm512_setzero_ps();
  }
  const Word* const q = split.q(first_row);
  const float* tiles[Tiles];
  PRECAST_UNROLL for (std::size_t t = 0; t < Tiles; ++t) tiles[t] = split.k_tile(first_tile + t);
  for (std::size_t w = 0; w < split.q_words; ++w) {
    if (first_row == 0) {  // V of the same tiles, behind K
      PRECAST_UNROLL for (std::size_t t = 0; t < Tiles; ++t) prefetch_line(tiles[t], split.q_words + w);
    }
    __m512 lines[Tiles];
    PRECAST_UNROLL for (std::size_t t = 0; t < Tiles; ++t) lines[t] = _mm512_loadu_ps(tiles[t] + w * num_lanes);
    PRECAST_UNROLL for (std::size_t r = 0; r < Rows; ++r) {
      const Word word = q[r * split.q_words + w];
      PRECAST_UNROLL for (std::size_t t = 0; t < Tiles; ++t) {
        sums[r][t] = Cache::multiply_add(word, lines[t], sums[r][t]);
      }
    }
  }
  const __m512 scale = _mm512_set1_ps(split.args.scale);
  PRECAST_UNROLL for (std::size_t r = 0; r < Rows; ++r) {
    float* const scores = split.scores(first_row + r) + first_tile * tokens_per_tile;
    PRECAST_UNROLL for (std::size_t t = 0; t < Tiles; ++t) {
      _mm512_store_ps(scores + t * num_lanes, _mm512_mul_ps(sums[r][t], scale));
    }
  }
}

// Scores of all rows. A few tiles stay in the first-level cache while all rows pass over them.
template <typename Cache>
void score_rows(const Split<Cache>& split) noexcept {
  const AttendSplitArgs& args = split.args;
  const std::size_t num_tiles = tiles_of(args.end_visible[args.num_rows - 1]);
  for (std::size_t tile = args.first_visible[0] / tokens_per_tile; tile < num_tiles; tile += max_columns) {
    for (std::size_t row = 0; row < args.num_rows; row += max_rows) {
      const std::size_t rows = smaller(max_rows, args.num_rows - row);
      if (tile >= tiles_of(args.end_visible[row + rows - 1])) continue;
      if (tile + max_columns <= args.first_visible[row] / tokens_per_tile) continue;
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

// Replaces a row's scores by probabilities, and takes the maximum and the sum on the way. Lanes of its first and last
// tile that the row does not see count as -infinity, so that their probability is exactly 0.
template <typename Cache>
void softmax_row(const Split<Cache>& split, std::size_t row) noexcept {
  float* const scores = split.scores(row);
  const std::size_t first_tile = split.args.first_visible[row] / num_lanes;
  const std::size_t last_tile = (split.args.end_visible[row] - 1) / num_lanes;
  const auto lanes_before = first_lanes(split.args.first_visible[row] - first_tile * num_lanes);
  const auto last_lanes = first_lanes(split.args.end_visible[row] - last_tile * num_lanes);
  const __m512 minus_infinity = _mm512_set1_ps(-__builtin_inff());
  _mm512_mask_store_ps(scores + first_tile * num_lanes, lanes_before, minus_infinity);
  const __m512 last = _mm512_mask_load_ps(minus_infinity, last_lanes, scores + last_tile * num_lanes);
  __m512 largest = last;
  for (std::size_t t = first_tile; t < last_tile; ++t) {
    largest = _mm512_max_ps(largest, _mm512_load_ps(scores + t * num_lanes));
  }
  const float max = _mm512_reduce_max_ps(largest);
  __m512 sum = _mm512_setzero_ps();
  const auto add_tile = [&](std::size_t tile, __m512 tile_scores) noexcept {
    const __m512 e = math_avx512::exp(_mm512_sub_ps(tile_scores, _mm512_set1_ps(max)));
    sum = _mm512_add_ps(sum, e);
    Cache::store(split.probabilities(row), tile, e);
  };
  for (std::size_t t = first_tile; t < last_tile; ++t) add_tile(t, _mm512_load_ps(scores + t * num_lanes));
  add_tile(last_tile, last);
  split.args.result.max[row] = max;
  split.args.result.sum[row] = sum_of_lanes(sum);
}

// Adds V rows first_v_row .. end_v_row - 1 of the split, weighted, to Columns vectors of Rows rows from vector
// `first_column` on.
template <typename Cache, std::size_t Rows, std::size_t Columns>
void add_block(const Split<Cache>& split, std::size_t first_row, std::size_t first_column, std::size_t first_v_row,
               std::size_t end_v_row) noexcept {
  constexpr std::size_t v_rows_per_tile = Split<Cache>::v_rows_per_tile;
  const std::size_t first_d = first_column * num_lanes;
  __mmask16 lanes[Columns];
  PRECAST_UNROLL for (std::size_t c = 0; c < Columns; ++c) {
    lanes[c] = first_lanes(split.head_dim - first_d - c * num_lanes);
  }
  __m512 sums[Rows][Columns];
  PRECAST_UNROLL for (std::size_t r = 0; r < Rows; ++r) {
    const float* const weighted = split.weighted(first_row + r) + first_d;
    PRECAST_UNROLL for (std::size_t c = 0; c < Columns; ++c) {
      sums[r][c] = _mm512_maskz_loadu_ps(lanes[c], weighted + c * num_lanes);
    }
  }
  const Word* const probabilities = split.probabilities(first_row);
  for (std::size_t v_row = first_v_row; v_row < end_v_row; ++v_row) {
    const std::size_t tile = v_row / v_rows_per_tile;
    const std::size_t row_in_tile = v_row % v_rows_per_tile;
    if (first_row == 0 && split.is_next(tile)) {  // a K tile has as many lines as its V tile has vectors
      const auto* const next_k = reinterpret_cast<const float*>(split.args.next_tiles[tile]);
      const std::size_t line = row_in_tile * split.num_columns + first_column;
      PRECAST_UNROLL for (std::size_t c = 0; c < Columns; ++c) prefetch_line(next_k, line + c);
    }
    const float* const v = split.v_tile(tile) + row_in_tile * split.head_dim + first_d;
    __m512 lines[Columns];
    PRECAST_UNROLL for (std::size_t c = 0; c < Columns; ++c) {
      lines[c] = _mm512_maskz_loadu_ps(lanes[c], v + c * num_lanes);
    }
    PRECAST_UNROLL for (std::size_t r = 0; r < Rows; ++r) {
      const Word word = probabilities[r * tokens_per_split + v_row];
      PRECAST_UNROLL for (std::size_t c = 0; c < Columns; ++c) {
        sums[r][c] = Cache::multiply_add(word, lines[c], sums[r][c]);
      }
    }
  }
  PRECAST_UNROLL for (std::size_t r = 0; r < Rows; ++r) {
    float* const weighted = split.weighted(first_row + r) + first_d;
    PRECAST_UNROLL for (std::size_t c = 0; c < Columns; ++c) {
      _mm512_mask_storeu_ps(weighted + c * num_lanes, lanes[c], sums[r][c]);
    }
  }
}

// The same for whole rows of V.
template <typename Cache>
void add_values(const Split<Cache>& split, std::size_t first_row, std::size_t num_rows, std::size_t first_v_row,
                std::size_t end_v_row) noexcept {
  if (first_v_row >= end_v_row) return;
  for (std::size_t column = 0; column < split.num_columns; column += max_columns) {
    with_constant<max_rows>(num_rows, [&]<std::size_t Rows>() noexcept {
      with_constant<max_columns>(smaller(max_columns, split.num_columns - column), [&]<std::size_t Columns>() noexcept {
        add_block<Cache, Rows, Columns>(split, first_row, column, first_v_row, end_v_row);
      });
    });
  }
}

// One token of a pair, the one that `half` masks: the other one's V is not multiplied, not even by 0.
void add_half_pair(const Split<Bf16Cache>& split, std::size_t row, std::size_t v_row, Word half) noexcept {
  constexpr std::size_t v_rows_per_tile = Split<Bf16Cache>::v_rows_per_tile;
  const float* const v = split.v_tile(v_row / v_rows_per_tile) + v_row % v_rows_per_tile * split.head_dim;
  float* const weighted = split.weighted(row);
  const Word word = split.probabilities(row)[v_row] & half;
  for (std::size_t d = 0; d < split.head_dim; d += num_lanes) {
    const __mmask16 lanes = first_lanes(split.head_dim - d);
    const __m512i pairs = _mm512_maskz_loadu_epi32(lanes, v + d);
    const __m512 line = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(half))));
    const __m512 sum = Bf16Cache::multiply_add(word, line, _mm512_maskz_loadu_ps(lanes, weighted + d));
    _mm512_mask_storeu_ps(weighted + d, lanes, sum);
  }
}

void add_half_pair(const Split<F32Cache>&, std::size_t, std::size_t, Word) noexcept {}

// A few rows together over the V rows that each of them sees in full; before and after it, each row alone over what
// else it sees. So every row adds its tokens in ascending order.
template <typename Cache>
void weigh_values(const Split<Cache>& split) noexcept {
  const AttendSplitArgs& args = split.args;
  constexpr std::size_t per_v_row = Cache::elements_per_word;
  // The V rows that a row sees in full. Of a pair of tokens it may see nothing but the odd one, or nothing but the even.
  const auto first_v_row = [&](std::size_t row) noexcept {
    return (args.first_visible[row] + per_v_row - 1) / per_v_row;
  };
  const auto end_v_row = [&](std::size_t row) noexcept { return args.end_visible[row] / per_v_row; };
  for (std::size_t i = 0; i < args.num_rows * split.head_dim; ++i) args.result.weighted[i] = 0.0f;
  for (std::size_t first = 0; first < args.num_rows; first += max_rows) {
    const std::size_t rows = smaller(max_rows, args.num_rows - first);
    const std::size_t common_first = first_v_row(first + rows - 1);
    const std::size_t common_end = larger(common_first, end_v_row(first));
    for (std::size_t row = first; row < first + rows; ++row) {
      if (args.first_visible[row] % per_v_row != 0) add_half_pair(split, row, first_v_row(row) - 1, 0xFFFF0000u);
      add_values(split, row, 1, first_v_row(row), smaller(common_first, end_v_row(row)));
    }
    add_values(split, first, rows, common_first, common_end);
    for (std::size_t row = first; row < first + rows; ++row) {
      add_values(split, row, 1, larger(common_end, first_v_row(row)), end_v_row(row));
      if (args.end_visible[row] % per_v_row != 0) add_half_pair(split, row, end_v_row(row), 0xFFFFu);
    }
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
