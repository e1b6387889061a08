// SPDX-License-Identifier: Apache-2.0
#include "plugins/cpu/weight_layout.h"

namespace precast {
namespace {

struct Named {
  WeightLayout layout;
  std::string_view id;
};

constexpr Named layouts[] = {{WeightLayout::x16k1_f32, "x16k1.f32/1"}, {WeightLayout::x16k2_bf16, "x16k2.bf16/1"}};

constexpr std::size_t divide_up(std::size_t a, std::size_t b) noexcept { return a / b + (a % b != 0); }

}  // namespace

std::optional<WeightLayout> parse_weight_layout(std::string_view text) noexcept {
  for (const Named& named : layouts) {
    if (named.id == text) return named.layout;
  }
  return std::nullopt;
}

std::string_view id(WeightLayout layout) noexcept {
  for (const Named& named : layouts) {
    if (named.layout == layout) return named.id;
  }
  return "unknown";
}

std::size_t inputs_per_line(WeightLayout layout) noexcept { return layout == WeightLayout::x16k1_f32 ? 1 : 2; }

std::size_t num_tiles(std::size_t out_features) noexcept { return divide_up(out_features, tile_outputs); }

std::size_t lines_per_tile(WeightLayout layout, std::size_t in_features) noexcept {
  return divide_up(in_features, inputs_per_line(layout));
}

std::optional<std::size_t> packed_size_bytes(WeightLayout layout, std::size_t out_features,
                                             std::size_t in_features) noexcept {
  const std::size_t tiles = num_tiles(out_features);
  const std::size_t lines = lines_per_tile(layout, in_features);
  if (tiles == 0 || lines == 0 || tiles > static_cast<std::size_t>(-1) / line_bytes / lines) return std::nullopt;
  return tiles * lines * line_bytes;
}

}  // namespace precast
