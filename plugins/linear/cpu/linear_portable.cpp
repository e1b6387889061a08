// SPDX-License-Identifier: Apache-2.0
// Written so that a compiler makes vectors of the 16 outputs of a tile on any processor. No std::fma: without hardware
// for it, it is a function call.
#include <algorithm>
#include <bit>

#include "plugins/cpu/bf16.h"
#include "plugins/linear/cpu/linear_kernels.h"

namespace precast {
namespace {

// The two layouts: how a row's unit and a line of weights are added to 16 sums, in the order of the schema.
struct F32 {
  static void add_products(float (&sums)[tile_outputs], LinearUnit unit, const LinearUnit* line) noexcept {
    const auto x = std::bit_cast<float>(unit);
    for (std::size_t j = 0; j < tile_outputs; ++j) sums[j] += x * std::bit_cast<float>(line[j]);
  }
};
struct Bf16 {
  static float odd(LinearUnit pair) noexcept { return std::bit_cast<float>(pair & 0xFFFF0000u); }
  static float even(LinearUnit pair) noexcept { return std::bit_cast<float>(pair << 16); }
  static void add_products(float (&sums)[tile_outputs], LinearUnit unit, const LinearUnit* line) noexcept {
    for (std::size_t j = 0; j < tile_outputs; ++j) {
      sums[j] += odd(unit) * odd(line[j]);
      sums[j] += even(unit) * even(line[j]);
    }
  }
};

template <typename Layout, std::size_t rows>
void multiply(const LinearBlock& block) noexcept {
  float sums[rows][tile_outputs] = {};
  if (block.start != nullptr) {
    for (std::size_t r = 0; r < rows; ++r) {
      std::copy_n(block.start + r * block.start_stride, block.num_columns, sums[r]);
    }
  }
  const LinearUnit* x = block.x;
  const auto* line = reinterpret_cast<const LinearUnit*>(block.weight);
  for (std::size_t l = 0; l < block.num_lines; ++l) {
#pragma GCC unroll 8
    for (std::size_t r = 0; r < rows; ++r) Layout::add_products(sums[r], x[r], line);
    x += rows;
    line += tile_outputs;
  }
  for (std::size_t r = 0; r < rows; ++r) std::copy_n(sums[r], block.num_columns, block.y + r * block.y_stride);
}

void convert_row_f32(const float* x, std::size_t in_features, LinearUnit* units, std::size_t rows) noexcept {
  for (std::size_t k = 0; k < in_features; ++k) units[k * rows] = std::bit_cast<LinearUnit>(x[k]);
}

void convert_row_bf16(const float* x, std::size_t in_features, LinearUnit* units, std::size_t rows) noexcept {
  for (std::size_t k = 0; k < in_features; k += 2) {
    const LinearUnit even = round_to_bf16(x[k]).bits;
    const LinearUnit odd = k + 1 < in_features ? round_to_bf16(x[k + 1]).bits : 0;
    units[k / 2 * rows] = even | odd << 16;
  }
}

// Two rows of sums fill half of the 16 registers that the smallest x86-64 has.
template <typename Layout>
constexpr LinearKernels kernels(decltype(LinearKernels::convert_row) convert_row) noexcept {
  return {.convert_row = convert_row, .most_rows = 2, .panel_rows = 2, .multiply = {{multiply<Layout, 1>}, {multiply<Layout, 2>}}};
}

constexpr LinearKernels f32_kernels = kernels<F32>(convert_row_f32);
constexpr LinearKernels bf16_kernels = kernels<Bf16>(convert_row_bf16);

}  // namespace

const LinearKernels& linear_kernels_portable(WeightLayout layout) noexcept {
  return layout == WeightLayout::x16k1_f32 ? f32_kernels : bf16_kernels;
}

}  // namespace precast
