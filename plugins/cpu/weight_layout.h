// SPDX-License-Identifier: Apache-2.0
// The layouts of packed weight matrices. plugins/layouts.py describes them.
#pragma once

#include <cstddef>
#include <optional>
#include <string_view>

namespace precast {

enum class WeightLayout {
  x16k1_f32,   // "x16k1.f32/1"
  x16k2_bf16,  // "x16k2.bf16/1"
};

// A packed matrix W [out_features, in_features] is a row of tiles of 16 output features. A tile is a row of 64-byte
// lines, each of which holds, for every output of the tile, 4 bytes: one fp32 or two consecutive bf16 inputs.
inline constexpr std::size_t tile_outputs = 16;
inline constexpr std::size_t line_bytes = 64;

// The layout with this id; nothing where no weight layout has it.
std::optional<WeightLayout> parse_weight_layout(std::string_view id) noexcept;

// "x16k2.bf16/1" and the like.
std::string_view id(WeightLayout layout) noexcept;

std::size_t inputs_per_line(WeightLayout layout) noexcept;
std::size_t num_tiles(std::size_t out_features) noexcept;
std::size_t lines_per_tile(WeightLayout layout, std::size_t in_features) noexcept;

// Bytes of a packed matrix; nothing where a dimension is 0 or the number does not fit.
std::optional<std::size_t> packed_size_bytes(WeightLayout layout, std::size_t out_features,
                                             std::size_t in_features) noexcept;

}  // namespace precast
