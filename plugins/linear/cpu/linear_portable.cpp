// SPDX-License-Identifier: Apache-2.0
// No std::fma here: where the hardware has none it is a function call. Vectors of four are what the smallest x86-64 and
// AArch64 have; the compilers' extension for them keeps the sums in registers, which the optimiser alone does not.
#include <algorithm>
#include <bit>
#include <cstring>

#include "plugins/cpu/bf16.h"
#include "plugins/linear/cpu/linear_kernels.h"

namespace precast {
namespace {

using Floats = float __attribute__((vector_size(16)));
using Units = LinearUnit __attribute__((vector_size(16)));

constexpr std::size_t num_lanes = 4;
constexpr std::size_t num_vectors = tile_outputs / num_lanes;

// The two layouts: how a row's unit and the weights of four outputs are added to their sums, in the order of the
// schema.
struct F32 {
  static void add_products(Floats& sums, LinearUnit x, Units w) noexcept {
    sums += std::bit_cast<float>(x) * std::bit_cast<Floats>(w);
  }
};
struct Bf16 {
  static void add_products(Floats& sums, LinearUnit x, Units w) noexcept {
    sums += std::bit_cast<float>(x & 0xFFFF0000u) * std::bit_cast<Floats>(w & 0xFFFF0000u);
    sums += std::bit_cast<float>(x << 16) * std::bit_cast<Floats>(w << 16);
  }
};

// A row of sums goes through memory of its own, so that the sums themselves can stay in registers.
void load(const float* from, std::size_t count, Floats (&sums)[num_vectors]) noexcept {
  float row[tile_outputs] = {};
  std::copy_n(from, count, row);
  std::memcpy(sums, row, sizeof(row));
}

void store(const Floats (&sums)[num_vectors], std::size_t count, float* to) noexcept {
  float row[tile_outputs];
  std::memcpy(row, sums, sizeof(row));
  std::copy_n(row, count, to);
}

template <typename Layout, std::size_t rows>
void multiply(const LinearBlock& block) noexcept {
  Floats sums[rows][num_vectors] = {};
  if (block.start != nullptr) {
    for (std::size_t r = 0; r < rows; ++r) load(block.start + r * block.start_stride, block.num_columns, sums[r]);
  }
  const LinearUnit* x = block.x;
  const std::byte* line = block.weight;
  for (std::size_t l = 0; l < block.num_lines; ++l) {
#pragma GCC unroll 4
    for (std::size_t v = 0; v < num_vectors; ++v) {
      Units w;
      std::memcpy(&w, line + v * sizeof(w), sizeof(w));
#pragma GCC unroll 4
      for (std::size_t r = 0; r < rows; ++r) Layout::add_products(sums[r][v], x[r], w);
    }
    x += rows;
    line += line_bytes;
  }
  for (std::size_t r = 0; r < rows; ++r) store(sums[r], block.num_columns, block.y + r * block.y_stride);
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

// The sums of two rows take half of the 16 registers that the smallest x86-64 has.
template <typename Layout>
constexpr LinearKernels kernels(decltype(LinearKernels::convert_row) convert_row) noexcept {
  return {.convert_row = convert_row,
          .units_per_line = 1,
          .most_rows = 2,
          .panel_rows = 2,
          .multiply = {{multiply<Layout, 1>}, {multiply<Layout, 2>}}};
}

constexpr LinearKernels f32_kernels = kernels<F32>(convert_row_f32);
constexpr LinearKernels bf16_kernels = kernels<Bf16>(convert_row_bf16);

}  // namespace

const LinearKernels& linear_kernels_portable(WeightLayout layout) noexcept {
  return layout == WeightLayout::x16k1_f32 ? f32_kernels : bf16_kernels;
}

}  // namespace precast
