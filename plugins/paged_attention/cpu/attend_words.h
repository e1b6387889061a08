// SPDX-License-Identifier: Apache-2.0
// Attention to one split with vectors of 16 lanes, for every kernel level that has them, be it in two registers.
//
// A level says how it computes with lines in a struct `Vectors`:
//
//     Line, zero(), broadcast(x), load(p), store(p, line)
//     first_lanes(n): the first n lanes, or all of them if n is larger; load(p, lanes) with zeros in the others,
//     store(p, lanes, line), choose(lanes, a, b): these lanes of a, the others of b
//     masked(line, word): every lane's bits & word
//     add, subtract, multiply, max, exp; sum_of_lanes (l[i] + l[i+8], then + 4, 2, 1), max_of_lanes
//     max_rows, columns_at_once(rows): how many sums the registers hold beside a line of each column and a word
//
// and in a struct `Cache` for each cache how it multiplies words (split_words.h):
//
//     Vectors, elements_per_word
//     multiply_add(word, line, sum): adds the products of a word with the 16 words of a line to 16 sums
//     store(words, tile, e): stores the 16 probabilities of a tile, rounded
//
// Every sum is one chain of additions in the schema's order, whichever rows and columns share the registers.
#pragma once

#include "plugins/paged_attention/cpu/split_words.h"

namespace precast {
namespace {  // its own copy for each source: see bf16.h

// sums[r][c] += word(r) * line(c). Whichever there are fewer of, rows or columns, is loaded first.
template <typename Cache, std::size_t Rows, std::size_t Columns, typename WordOf, typename LineOf>
void add_products(const WordOf& word_of, const LineOf& line_of,
                  typename Cache::Vectors::Line (&sums)[Rows][Columns]) noexcept {
  if constexpr (Columns < Rows) {
    typename Cache::Vectors::Line lines[Columns];
    PRECAST_UNROLL for (std::size_t c = 0; c < Columns; ++c) lines[c] = line_of(c);
    PRECAST_UNROLL for (std::size_t r = 0; r < Rows; ++r) {
      const Word word = word_of(r);
      PRECAST_UNROLL for (std::size_t c = 0; c < Columns; ++c) {
        sums[r][c] = Cache::multiply_add(word, lines[c], sums[r][c]);
      }
    }
  } else {
    Word words[Rows];
    PRECAST_UNROLL for (std::size_t r = 0; r < Rows; ++r) words[r] = word_of(r);
    PRECAST_UNROLL for (std::size_t c = 0; c < Columns; ++c) {
      const auto line = line_of(c);
      PRECAST_UNROLL for (std::size_t r = 0; r < Rows; ++r) {
        sums[r][c] = Cache::multiply_add(words[r], line, sums[r][c]);
      }
    }
  }
}

// Scores of Rows rows against Tiles tiles.
template <typename Cache, std::size_t Rows, std::size_t Tiles>
void score_block(const Split<Cache>& split, std::size_t first_row, std::size_t first_tile) noexcept {
  using Vectors = typename Cache::Vectors;
  typename Vectors::Line sums[Rows][Tiles];
  PRECAST_UNROLL for (std::size_t r = 0; r < Rows; ++r) {
    PRECAST_UNROLL for (std::size_t t = 0; t < Tiles; ++t) sums[r][t] = Vectors::zero();
  }
  const Word* const q = split.q(first_row);
  const float* tiles[Tiles];
  PRECAST_UNROLL for (std::size_t t = 0; t < Tiles; ++t) tiles[t] = split.k_tile(first_tile + t);
  for (std::size_t w = 0; w < split.q_words; ++w) {
    if (first_row == 0) {  // V of the same tiles, behind K
      PRECAST_UNROLL for (std::size_t t = 0; t < Tiles; ++t) prefetch_line(tiles[t], split.q_words + w);
    }
    add_products<Cache>([&](std::size_t r) noexcept { return q[r * split.q_words + w]; },
                        [&](std::size_t t) noexcept { return Vectors::load(tiles[t] + w * num_lanes); }, sums);
  }
  const auto scale = Vectors::broadcast(split.args.scale);
  PRECAST_UNROLL for (std::size_t r = 0; r < Rows; ++r) {
    float* const scores = split.scores(first_row + r) + first_tile * tokens_per_tile;
    PRECAST_UNROLL for (std::size_t t = 0; t < Tiles; ++t) {
      Vectors::store(scores + t * num_lanes, Vectors::multiply(sums[r][t], scale));
    }
  }
}

// Scores of a few rows against tiles first_tile .. end_tile - 1, as far as any of these rows sees them.
template <typename Cache, std::size_t Rows>
void score_tiles(const Split<Cache>& split, std::size_t first_row, std::size_t first_tile,
                 std::size_t end_tile) noexcept {
  constexpr std::size_t step = Cache::Vectors::columns_at_once(Rows);
  const std::size_t first_visible = split.args.first_visible[first_row] / tokens_per_tile;
  const std::size_t end_visible = tiles_of(split.args.end_visible[first_row + Rows - 1]);
  const std::size_t end = smaller(end_tile, end_visible);
  for (std::size_t tile = larger(first_tile, first_visible); tile < end; tile += step) {
    with_constant<step>(smaller(step, end - tile), [&]<std::size_t Tiles>() noexcept {
      score_block<Cache, Rows, Tiles>(split, first_row, tile);
    });
  }
}

// Scores of all rows. A few tiles stay in the first-level cache while all rows pass over them.
template <typename Cache>
void score_rows(const Split<Cache>& split) noexcept {
  constexpr std::size_t max_rows = Cache::Vectors::max_rows;
  constexpr std::size_t tiles_at_once = Cache::Vectors::columns_at_once(1);
  const AttendSplitArgs& args = split.args;
  const std::size_t num_tiles = tiles_of(args.end_visible[args.num_rows - 1]);
  for (std::size_t tile = args.first_visible[0] / tokens_per_tile; tile < num_tiles; tile += tiles_at_once) {
    for (std::size_t row = 0; row < args.num_rows; row += max_rows) {
      with_constant<max_rows>(smaller(max_rows, args.num_rows - row), [&]<std::size_t Rows>() noexcept {
        score_tiles<Cache, Rows>(split, row, tile, smaller(tile + tiles_at_once, num_tiles));
      });
    }
  }
}

// Replaces a row's scores by probabilities, and takes the maximum and the sum on the way. Lanes of its first and last
// tile that the row does not see count as -infinity, so that their probability is exactly 0.
template <typename Cache>
void softmax_row(const Split<Cache>& split, std::size_t row) noexcept {
  using Vectors = typename Cache::Vectors;
  using Line = typename Vectors::Line;
  float* const scores = split.scores(row);
  const std::size_t first_tile = split.args.first_visible[row] / num_lanes;
  const std::size_t last_tile = (split.args.end_visible[row] - 1) / num_lanes;
  const auto lanes_before = Vectors::first_lanes(split.args.first_visible[row] - first_tile * num_lanes);
  const auto last_lanes = Vectors::first_lanes(split.args.end_visible[row] - last_tile * num_lanes);
  const Line minus_infinity = Vectors::broadcast(-__builtin_inff());
  Vectors::store(scores + first_tile * num_lanes, lanes_before, minus_infinity);
  const Line last = Vectors::choose(last_lanes, Vectors::load(scores + last_tile * num_lanes), minus_infinity);
  Line largest = last;
  for (std::size_t t = first_tile; t < last_tile; ++t) {
    largest = Vectors::max(largest, Vectors::load(scores + t * num_lanes));
  }
  const float max = Vectors::max_of_lanes(largest);
  Line sum = Vectors::zero();
  const auto add_tile = [&](std::size_t tile, const Line& tile_scores) noexcept {
    const Line e = Vectors::exp(Vectors::subtract(tile_scores, Vectors::broadcast(max)));
    sum = Vectors::add(sum, e);
    Cache::store(split.probabilities(row), tile, e);
  };
  for (std::size_t t = first_tile; t < last_tile; ++t) add_tile(t, Vectors::load(scores + t * num_lanes));
  add_tile(last_tile, last);
  split.args.result.max[row] = max;
  split.args.result.sum[row] = Vectors::sum_of_lanes(sum);
}

// Adds V rows first_v_row .. end_v_row - 1 of the split, weighted, to Columns lines of Rows rows from line
// `first_column` on.
template <typename Cache, std::size_t Rows, std::size_t Columns>
void add_block(const Split<Cache>& split, std::size_t first_row, std::size_t first_column, std::size_t first_v_row,
               std::size_t end_v_row) noexcept {
  using Vectors = typename Cache::Vectors;
  constexpr std::size_t v_rows_per_tile = Split<Cache>::v_rows_per_tile;
  const std::size_t first_d = first_column * num_lanes;
  typename Vectors::Lanes lanes[Columns];
  PRECAST_UNROLL for (std::size_t c = 0; c < Columns; ++c) {
    lanes[c] = Vectors::first_lanes(split.head_dim - first_d - c * num_lanes);
  }
  typename Vectors::Line sums[Rows][Columns];
  PRECAST_UNROLL for (std::size_t r = 0; r < Rows; ++r) {
    const float* const weighted = split.weighted(first_row + r) + first_d;
    PRECAST_UNROLL for (std::size_t c = 0; c < Columns; ++c) {
      sums[r][c] = Vectors::load(weighted + c * num_lanes, lanes[c]);
    }
  }
  const Word* const probabilities = split.probabilities(first_row);
  for (std::size_t v_row = first_v_row; v_row < end_v_row; ++v_row) {
    const std::size_t tile = v_row / v_rows_per_tile;
    const std::size_t row_in_tile = v_row % v_rows_per_tile;
    if (first_row == 0 && split.is_next(tile)) {  // a K tile has as many lines as its V tile
      const auto* const next_k = reinterpret_cast<const float*>(split.args.next_tiles[tile]);
      const std::size_t line = row_in_tile * split.num_columns + first_column;
      PRECAST_UNROLL for (std::size_t c = 0; c < Columns; ++c) prefetch_line(next_k, line + c);
    }
    const float* const v = split.v_tile(tile) + row_in_tile * split.head_dim + first_d;
    add_products<Cache>([&](std::size_t r) noexcept { return probabilities[r * tokens_per_split + v_row]; },
                        [&](std::size_t c) noexcept { return Vectors::load(v + c * num_lanes, lanes[c]); }, sums);
  }
  PRECAST_UNROLL for (std::size_t r = 0; r < Rows; ++r) {
    float* const weighted = split.weighted(first_row + r) + first_d;
    PRECAST_UNROLL for (std::size_t c = 0; c < Columns; ++c) {
      Vectors::store(weighted + c * num_lanes, lanes[c], sums[r][c]);
    }
  }
}

// The same for whole rows of V.
template <typename Cache>
void add_values(const Split<Cache>& split, std::size_t first_row, std::size_t num_rows, std::size_t first_v_row,
                std::size_t end_v_row) noexcept {
  using Vectors = typename Cache::Vectors;
  if (first_v_row >= end_v_row) return;
  with_constant<Vectors::max_rows>(num_rows, [&]<std::size_t Rows>() noexcept {
    constexpr std::size_t step = Vectors::columns_at_once(Rows);
    for (std::size_t column = 0; column < split.num_columns; column += step) {
      with_constant<step>(smaller(step, split.num_columns - column), [&]<std::size_t Columns>() noexcept {
        add_block<Cache, Rows, Columns>(split, first_row, column, first_v_row, end_v_row);
      });
    }
  });
}

constexpr Word even_half = 0x0000FFFFu;
constexpr Word odd_half = 0xFFFF0000u;

// One token of a pair, the one that `half` masks: the other one's V is not multiplied, not even by 0.
template <typename Cache>
void add_half_pair(const Split<Cache>& split, std::size_t row, std::size_t v_row, Word half) noexcept {
  using Vectors = typename Cache::Vectors;
  constexpr std::size_t v_rows_per_tile = Split<Cache>::v_rows_per_tile;
  const float* const v = split.v_tile(v_row / v_rows_per_tile) + v_row % v_rows_per_tile * split.head_dim;
  float* const weighted = split.weighted(row);
  const Word word = split.probabilities(row)[v_row] & half;
  for (std::size_t d = 0; d < split.head_dim; d += num_lanes) {
    const auto lanes = Vectors::first_lanes(split.head_dim - d);
    const auto line = Vectors::masked(Vectors::load(v + d, lanes), half);
    const auto sum = Cache::multiply_add(word, line, Vectors::load(weighted + d, lanes));
    Vectors::store(weighted + d, lanes, sum);
  }
}

// A few rows together over the V rows that each of them sees in full; before and after it, each row alone over what
// else it sees. So every row adds its tokens in ascending order.
template <typename Cache>
void weigh_values(const Split<Cache>& split) noexcept {
  constexpr std::size_t max_rows = Cache::Vectors::max_rows;
  const AttendSplitArgs& args = split.args;
  constexpr std::size_t per_v_row = Cache::elements_per_word;
  // The V rows that a row sees in full. Of a pair of tokens it may see nothing but the odd or nothing but the even one.
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
      if (args.first_visible[row] % per_v_row != 0) add_half_pair(split, row, first_v_row(row) - 1, odd_half);
      add_values(split, row, 1, first_v_row(row), smaller(common_first, end_v_row(row)));
    }
    add_values(split, first, rows, common_first, common_end);
    for (std::size_t row = first; row < first + rows; ++row) {
      add_values(split, row, 1, larger(common_end, first_v_row(row)), end_v_row(row));
      if (args.end_visible[row] % per_v_row != 0) add_half_pair(split, row, end_v_row(row), even_half);
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
}  // namespace precast
