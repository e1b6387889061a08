// SPDX-License-Identifier: Apache-2.0
// The innermost loops of Linear at each kernel level. Inside this op only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "plugins/cpu/weight_layout.h"

namespace precast {

// What one output has in a line of a weight tile: 4 bytes, an fp32 or two bf16 (the lower half is the input with the
// even index). What one row has in a line of a panel is a unit of the same kind, or, if the level multiplies bf16 as
// fp32, two units: each of the inputs, rounded to bf16, as an fp32.
using LinearUnit = std::uint32_t;

// Some rows times some neighbouring tiles, over some of the lines (of the inputs).
//
//   x       a panel: for each line, its units of each row        [lines][units_per_line][rows]
//   weight  the first tile's first line of these; the next tile is tile_bytes away
//   start   what the sums start from: [rows, columns] with start_stride between rows (0: all rows have the same, the
//           bias); null: zeros
//   y       where the sums go: [rows, columns] with y_stride between rows. May be `start` itself, so that a row's
//           inputs can be worked off in several calls: storing an fp32 sum and loading it again changes no bit
struct LinearBlock {
  const LinearUnit* x;
  const std::byte* weight;
  std::size_t tile_bytes;
  std::size_t num_lines;
  std::size_t num_columns;  // of y; in the last of the tiles there may be fewer than 16
  const float* start;
  std::size_t start_stride;
  float* y;
  std::size_t y_stride;
};

// One level's kernels for one layout.
struct LinearKernels {
  static constexpr std::size_t max_rows = 14;
  static constexpr std::size_t max_tiles = 4;

  using Multiply = void (*)(const LinearBlock&) noexcept;

  // One row's part of a panel of `rows` rows: `x` [in_features] becomes units[0], units[rows], units[2 * rows], ...,
  // rounded to the dtype of the layout, an odd in_features padded with a 0.
  void (*convert_row)(const float* x, std::size_t in_features, LinearUnit* units, std::size_t rows) noexcept;
  std::size_t units_per_line;              // of one row in a panel
  std::size_t most_rows;                   // that a panel may have if it is the only one
  std::size_t panel_rows;                  // that panels have, at most, where one is not enough
  Multiply multiply[max_rows][max_tiles];  // [rows - 1][tiles - 1]; null where there is no such kernel

  // How many tiles at once the kernel for `rows` rows can take.
  std::size_t tiles_at_once(std::size_t rows) const noexcept {
    std::size_t tiles = max_tiles;
    while (multiply[rows - 1][tiles - 1] == nullptr) --tiles;
    return tiles;
  }
};

const LinearKernels& linear_kernels_portable(WeightLayout layout) noexcept;
const LinearKernels& linear_kernels_avx2(WeightLayout layout) noexcept;
const LinearKernels& linear_kernels_avx512(WeightLayout layout) noexcept;

}  // namespace precast
