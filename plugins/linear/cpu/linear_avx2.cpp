// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <utility>

#include "plugins/cpu/avx2.h"
#include "plugins/linear/cpu/linear_kernels.h"

namespace precast {
namespace {

constexpr std::size_t num_lanes = 8;

__m256 broadcast(LinearUnit unit) noexcept { return _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(unit))); }

// One input of each row times a line's part of it: sums[r][v] += x[r] * weights(v). Whichever there are fewer of, rows
// or vectors, stays in registers beside the sums.
template <std::size_t rows, std::size_t vectors, typename Weights>
void add_products(const LinearUnit* x, const Weights& weights, __m256 (&sums)[rows][vectors]) noexcept {
  if constexpr (vectors < rows) {
    __m256 w[vectors];
#pragma GCC unroll 8
    for (std::size_t v = 0; v < vectors; ++v) w[v] = weights(v);
#pragma GCC unroll 8
    for (std::size_t r = 0; r < rows; ++r) {
      const __m256 unit = broadcast(x[r]);
#pragma GCC unroll 8
      for (std::size_t v = 0; v < vectors; ++v) sums[r][v] = _mm256_fmadd_ps(unit, w[v], sums[r][v]);
    }
  } else {
    __m256 units[rows];
#pragma GCC unroll 8
    for (std::size_t r = 0; r < rows; ++r) units[r] = broadcast(x[r]);
#pragma GCC unroll 8
    for (std::size_t v = 0; v < vectors; ++v) {
      const __m256 w = weights(v);
#pragma GCC unroll 8
      for (std::size_t r = 0; r < rows; ++r) sums[r][v] = _mm256_fmadd_ps(units[r], w, sums[r][v]);
    }
  }
}

// The two layouts: how a line is added to the sums, in the order of the schema. `x` is the rows' part of the line,
// lines(v) points to the weights of 8 outputs. Of the 16 registers, sum_registers is what the compiler can keep sums in
// beside the rest; 8 keep two multipliers of a latency of 4 busy, 10 of 5. Whether to prefetch was measured: it made 2
// to 5 rows of bf16 up to a third faster, and fp32 and single rows slower.
struct F32 {
  static constexpr std::size_t units_per_line = 1;
  static constexpr std::size_t sum_registers = 12;
  static constexpr bool prefetches = false;

  template <std::size_t rows, std::size_t vectors, typename Lines>
  static void add_line(const LinearUnit* x, const Lines& lines, __m256 (&sums)[rows][vectors]) noexcept {
    add_products(x, [&](std::size_t v) noexcept { return _mm256_loadu_ps(lines(v)); }, sums);
  }
};

// There is no instruction for bf16: a panel holds the rounded inputs as fp32, weights become fp32 here.
struct Bf16 {
  static constexpr std::size_t units_per_line = 2;
  static constexpr std::size_t sum_registers = 10;
  static constexpr bool prefetches = true;

  template <std::size_t rows, std::size_t vectors, typename Lines>
  static void add_line(const LinearUnit* x, const Lines& lines, __m256 (&sums)[rows][vectors]) noexcept {
    const auto pairs = [&](std::size_t v) noexcept { return _mm256_castps_si256(_mm256_loadu_ps(lines(v))); };
    add_products(x + rows, [&](std::size_t v) noexcept { return odd_of_pairs(pairs(v)); }, sums);
    add_products(x, [&](std::size_t v) noexcept { return even_of_pairs(pairs(v)); }, sums);
  }
};

void prefetch(const std::byte* line) noexcept { _mm_prefetch(reinterpret_cast<const char*>(line), _MM_HINT_T0); }

// Every loop over rows and vectors is unrolled, which makes registers of the arrays.
template <typename Layout, std::size_t rows, std::size_t tiles>
void multiply(const LinearBlock& block) noexcept {
  constexpr std::size_t vectors = 2 * tiles;
  __m256 sums[rows][vectors];
#pragma GCC unroll 8
  for (std::size_t v = 0; v < vectors; ++v) {
    const std::size_t columns = without_first(v * num_lanes, block.num_columns);
#pragma GCC unroll 8
    for (std::size_t r = 0; r < rows; ++r) {
      sums[r][v] = block.start == nullptr
                       ? _mm256_setzero_ps()
                       : load_first(block.start + r * block.start_stride + v * num_lanes, columns);
    }
  }
  const LinearUnit* x = block.x;
  const std::byte* line = block.weight;
  for (std::size_t l = 0; l < block.num_lines; ++l) {
    const auto lines = [&](std::size_t v) noexcept {
      return reinterpret_cast<const float*>(line + v / 2 * block.tile_bytes) + v % 2 * num_lanes;
    };
    if constexpr (Layout::prefetches && rows > 1) {
#pragma GCC unroll 8
      for (std::size_t t = 0; t < tiles; ++t) prefetch(line + t * block.tile_bytes + 32 * line_bytes);
    }
    Layout::add_line(x, lines, sums);
    x += rows * Layout::units_per_line;
    line += line_bytes;
  }
#pragma GCC unroll 8
  for (std::size_t v = 0; v < vectors; ++v) {
    const std::size_t columns = without_first(v * num_lanes, block.num_columns);
#pragma GCC unroll 8
    for (std::size_t r = 0; r < rows; ++r) {
      store_first(block.y + r * block.y_stride + v * num_lanes, columns, sums[r][v]);
    }
  }
}

// Unit k of a row's panel is input k, as a float.
template <bool round>
void convert_row(const float* x, std::size_t in_features, LinearUnit* units, std::size_t rows) noexcept {
  for (std::size_t k = 0; k < in_features; k += num_lanes) {
    const std::size_t count = in_features - k;
    const __m256 loaded = load_first(x + k, count);
    const __m256 values = round ? rounded_to_bf16(loaded) : loaded;
    // The number of units, which is even where they are rounded: the input behind an odd last one is 0.
    const std::size_t padded = round ? count + count % 2 : count;
    if (rows == 1) {
      store_first(reinterpret_cast<float*>(units + k), padded, values);
      continue;
    }
    alignas(32) LinearUnit lanes[num_lanes];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), _mm256_castps_si256(values));
    for (std::size_t i = 0; i < (padded < num_lanes ? padded : num_lanes); ++i) units[(k + i) * rows] = lanes[i];
  }
}

// A tile's sums of one row take two registers.
template <typename Layout>
constexpr std::size_t most_tiles(std::size_t rows) noexcept {
  return std::min(LinearKernels::max_tiles, Layout::sum_registers / 2 / rows);
}

template <typename Layout, std::size_t rows>
constexpr void add_kernels(LinearKernels& kernels) noexcept {
  [&]<std::size_t... t>(std::index_sequence<t...>) {
    ((kernels.multiply[rows - 1][t] = multiply<Layout, rows, t + 1>), ...);
  }(std::make_index_sequence<most_tiles<Layout>(rows)>());
}

template <typename Layout>
constexpr LinearKernels make_kernels(decltype(LinearKernels::convert_row) convert) noexcept {
  constexpr std::size_t max_rows = Layout::sum_registers / 2;
  LinearKernels kernels{.convert_row = convert,
                        .units_per_line = Layout::units_per_line,
                        .most_rows = max_rows,
                        .panel_rows = max_rows,
                        .multiply = {}};
  [&]<std::size_t... r>(std::index_sequence<r...>) {
    (add_kernels<Layout, r + 1>(kernels), ...);
  }(std::make_index_sequence<max_rows>());
  return kernels;
}

constexpr LinearKernels f32_kernels = make_kernels<F32>(convert_row<false>);
constexpr LinearKernels bf16_kernels = make_kernels<Bf16>(convert_row<true>);

}  // namespace

const LinearKernels& linear_kernels_avx2(WeightLayout layout) noexcept {
  return layout == WeightLayout::x16k1_f32 ? f32_kernels : bf16_kernels;
}

}  // namespace precast
