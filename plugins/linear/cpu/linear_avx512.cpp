// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <utility>

#include "plugins/cpu/avx512.h"
#include "plugins/linear/cpu/linear_kernels.h"

namespace precast {
namespace {

// The two layouts: how a row's unit (in every lane of x) and a line of weights are added to 16 sums, in the order of
// the schema.
struct F32 {
  static __m512 add_products(__m512 sums, __m512i x, __m512i w) noexcept {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(x), _mm512_castsi512_ps(w), sums);
  }
};
struct Bf16 {
  static __m512 add_products(__m512 sums, __m512i x, __m512i w) noexcept {
    return _mm512_dpbf16_ps(sums, reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(w));
  }
};

// Every loop over rows and tiles is unrolled, which makes registers of the arrays.
template <typename Layout, std::size_t rows, std::size_t tiles>
void multiply(const LinearBlock& block) noexcept {
  __m512 sums[rows][tiles];
  __mmask16 columns[tiles];
#pragma GCC unroll 16
  for (std::size_t t = 0; t < tiles; ++t) columns[t] = first_lanes(block.num_columns - t * tile_outputs);
#pragma GCC unroll 16
  for (std::size_t r = 0; r < rows; ++r) {
#pragma GCC unroll 16
    for (std::size_t t = 0; t < tiles; ++t) {
      sums[r][t] = block.start == nullptr
                       ? _mm512_setzero_ps()
                       : _mm512_maskz_loadu_ps(columns[t], block.start + r * block.start_stride + t * tile_outputs);
    }
  }
  const LinearUnit* x = block.x;
  const std::byte* line = block.weight;
  for (std::size_t l = 0; l < block.num_lines; ++l) {
    __m512i w[tiles];
#pragma GCC unroll 16
    for (std::size_t t = 0; t < tiles; ++t) w[t] = _mm512_loadu_si512(line + t * block.tile_bytes);
#pragma GCC unroll 16
    for (std::size_t r = 0; r < rows; ++r) {
      const __m512i unit = _mm512_set1_epi32(static_cast<int>(x[r]));
#pragma GCC unroll 16
      for (std::size_t t = 0; t < tiles; ++t) sums[r][t] = Layout::add_products(sums[r][t], unit, w[t]);
    }
    x += rows;
    line += line_bytes;
  }
#pragma GCC unroll 16
  for (std::size_t r = 0; r < rows; ++r) {
#pragma GCC unroll 16
    for (std::size_t t = 0; t < tiles; ++t) {
      _mm512_mask_storeu_ps(block.y + r * block.y_stride + t * tile_outputs, columns[t], sums[r][t]);
    }
  }
}

void store_units(__m512i values, std::size_t count, LinearUnit* units, std::size_t rows) noexcept {
  if (rows == 1) {
    _mm512_mask_storeu_epi32(units, first_lanes(count), values);
    return;
  }
  alignas(64) LinearUnit lanes[16];
  _mm512_store_si512(lanes, values);
  for (std::size_t i = 0; i < (count < 16 ? count : 16); ++i) units[i * rows] = lanes[i];
}

void convert_row_f32(const float* x, std::size_t in_features, LinearUnit* units, std::size_t rows) noexcept {
  for (std::size_t k = 0; k < in_features; k += 16) {
    const std::size_t count = in_features - k;
    store_units(_mm512_maskz_loadu_epi32(first_lanes(count), x + k), count, units + k * rows, rows);
  }
}

// Rounds to nearest even, whatever MXCSR says; subnormals become zero.
void convert_row_bf16(const float* x, std::size_t in_features, LinearUnit* units, std::size_t rows) noexcept {
  for (std::size_t k = 0; k < in_features; k += 32) {
    const std::size_t count = in_features - k;
    const __m512 low = _mm512_maskz_loadu_ps(first_lanes(count), x + k);
    const __m512 high = _mm512_maskz_loadu_ps(first_lanes(count > 16 ? count - 16 : 0), x + k + 16);
    const auto pairs = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
    store_units(pairs, (count + 1) / 2, units + k / 2 * rows, rows);
  }
}

// The 32 registers hold rows * tiles sums, a line of each tile, and a row's unit.
constexpr std::size_t most_tiles(std::size_t rows) noexcept {
  return std::min(LinearKernels::max_tiles, (32 - 1) / (rows + 1));
}

template <typename Layout, std::size_t rows>
constexpr void add_kernels(LinearKernels& kernels) noexcept {
  [&]<std::size_t... t>(std::index_sequence<t...>) {
    ((kernels.multiply[rows - 1][t] = multiply<Layout, rows, t + 1>), ...);
  }(std::make_index_sequence<most_tiles(rows)>());
}

template <typename Layout>
constexpr LinearKernels make_kernels(decltype(LinearKernels::convert_row) convert_row) noexcept {
  LinearKernels kernels{.convert_row = convert_row,
                        .units_per_line = 1,
                        .most_rows = LinearKernels::max_rows,
                        .panel_rows = 8,
                        .multiply = {}};
  [&]<std::size_t... r>(std::index_sequence<r...>) {
    (add_kernels<Layout, r + 1>(kernels), ...);
  }(std::make_index_sequence<LinearKernels::max_rows>());
  return kernels;
}

constexpr LinearKernels f32_kernels = make_kernels<F32>(convert_row_f32);
constexpr LinearKernels bf16_kernels = make_kernels<Bf16>(convert_row_bf16);

}  // namespace

const LinearKernels& linear_kernels_avx512(WeightLayout layout) noexcept {
  return layout == WeightLayout::x16k1_f32 ? f32_kernels : bf16_kernels;
}

}  // namespace precast
