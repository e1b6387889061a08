// Weight matrices packed one number at a time, as plugins/layouts.py says.
#pragma once

#include <cstddef>
#include <cstring>
#include <vector>

#include "plugins/cpu/bf16.h"
#include "plugins/cpu/weight_layout.h"

namespace precast::test {

// `values` is [out_features, in_features]; in a bf16 layout they are rounded. Starts `offset` bytes into `bytes`.
struct PackedMatrix {
  std::vector<std::byte> bytes;
  std::size_t offset;

  const std::byte* data() const { return bytes.data() + offset; }
  std::size_t size() const { return bytes.size() - offset; }
};

inline PackedMatrix packed(WeightLayout layout, std::size_t out_features, std::size_t in_features,
                           const std::vector<float>& values, std::size_t offset = 0) {
  const std::size_t size_bytes = packed_size_bytes(layout, out_features, in_features).value();
  PackedMatrix matrix{std::vector<std::byte>(offset + size_bytes), offset};
  for (std::size_t n = 0; n < out_features; ++n) {
    for (std::size_t k = 0; k < in_features; ++k) {
      const float value = values[n * in_features + k];
      const std::size_t tile = n / tile_outputs;
      const std::size_t line = tile * lines_per_tile(layout, in_features) + k / inputs_per_line(layout);
      const std::size_t unit = offset + line * line_bytes + n % tile_outputs * 4;
      if (layout == WeightLayout::x16k1_f32) {
        std::memcpy(&matrix.bytes[unit], &value, sizeof(value));
      } else {
        const Bf16 rounded = round_to_bf16(value);
        std::memcpy(&matrix.bytes[unit + k % 2 * 2], &rounded, sizeof(rounded));
      }
    }
  }
  return matrix;
}

}  // namespace precast::test
