// SPDX-License-Identifier: Apache-2.0
// Queries, cache and scores as attend_words.h sees them: as words.
//
// Both caches are streams of 64-byte lines of 32-bit words, a word being one fp32 or a pair of bf16, and differ only in
// how a word is multiplied:
//
//                     fp32                        bf16
//     q row           D words                     D/2 words (pairs of dims)
//     K tile          D lines of 16 tokens        D/2 lines of 16 tokens
//     probabilities   512 words                   256 words (pairs of tokens)
//     V tile          16 rows of D words          8 rows of D words (pairs of tokens)
//
// Only files of a kernel level include this: attend_split_avx2.cpp and attend_split_avx512.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

#include "plugins/paged_attention/cpu/attend_split.h"
#include "plugins/paged_attention/cpu/kv_tile.h"

// Sums live in registers only if loops over them are unrolled before the compiler looks for arrays to split up.
#define PRECAST_UNROLL _Pragma("GCC unroll 8")

namespace precast {
namespace {  // its own copy for each source: see bf16.h

// Reads what others wrote as fp32 or bf16.
using Word [[gnu::may_alias]] = std::uint32_t;

constexpr std::size_t num_lanes = 16;  // of a line
static_assert(num_lanes == tokens_per_tile);

// One call of the kernel, seen as words.
template <typename Cache>
struct Split {
  static constexpr std::size_t v_rows_per_tile = tokens_per_tile / Cache::elements_per_word;

  explicit Split(const AttendSplitArgs& split_args) noexcept
      : args(split_args),
        head_dim(split_args.head_dim),
        q_words(split_args.head_dim / Cache::elements_per_word),
        num_columns((split_args.head_dim + num_lanes - 1) / num_lanes) {}

  const Word* q(std::size_t row) const noexcept { return static_cast<const Word*>(args.q) + row * q_words; }
  float* scores(std::size_t row) const noexcept { return args.scores + row * tokens_per_split; }
  // Probabilities take the place of the scores that they were made of.
  Word* probabilities(std::size_t row) const noexcept { return reinterpret_cast<Word*>(scores(row)); }
  float* weighted(std::size_t row) const noexcept { return args.result.weighted + row * head_dim; }
  const float* k_tile(std::size_t tile) const noexcept { return reinterpret_cast<const float*>(args.tiles[tile]); }
  const float* v_tile(std::size_t tile) const noexcept { return k_tile(tile) + q_words * num_lanes; }
  // Whether next_tiles has this tile.
  bool is_next(std::size_t tile) const noexcept {
    return tile >= args.first_next_tile && tile < args.end_next_tile;
  }

  const AttendSplitArgs& args;
  std::size_t head_dim;
  std::size_t q_words;
  std::size_t num_columns;  // lines of one row of V, the last one perhaps in part
};

// Fetches from memory go on all the time, in step with computing: while K is read, V of the same tiles is fetched, and
// while V is read, K of the split after this one.
void prefetch_line(const float* tile, std::size_t line) noexcept {
  _mm_prefetch(reinterpret_cast<const char*>(tile + line * num_lanes), _MM_HINT_T1);
}

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
std::size_t larger(std::size_t a, std::size_t b) noexcept { return a > b ? a : b; }

// Tiles that hold `num_tokens` tokens, the last one perhaps in part.
std::size_t tiles_of(std::size_t num_tokens) noexcept { return (num_tokens + tokens_per_tile - 1) / tokens_per_tile; }

}  // namespace
}  // namespace precast
