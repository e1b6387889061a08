// SPDX-License-Identifier: Apache-2.0
#include "plugins/embedding/cpu/embedding.h"

#include <algorithm>
#include <bit>

namespace precast {
namespace {

// Below this many lines a task costs less than giving it to another thread.
constexpr std::size_t lines_per_task = 16 * 1024;

// Four bytes of each line belong to an output; `unit` points to those of the first line.
void gather_f32(const std::uint32_t* unit, std::size_t features, float* y) noexcept {
  for (std::size_t h = 0; h < features; ++h) y[h] = std::bit_cast<float>(unit[h * tile_outputs]);
}

void gather_bf16(const std::uint32_t* unit, std::size_t features, float* y) noexcept {
  for (std::size_t h = 0; h < features; h += 2) {
    const std::uint32_t pair = unit[h / 2 * tile_outputs];
    y[h] = std::bit_cast<float>(pair << 16);
    if (h + 1 < features) y[h + 1] = std::bit_cast<float>(pair & 0xFFFF0000u);
  }
}

// Its row of the table; at least `rows` where there is none. A negative id becomes larger than any row.
std::size_t row_of(const EmbeddingArgs& args, std::size_t token) noexcept {
  return static_cast<std::size_t>(static_cast<std::uint32_t>(args.token_ids[token])) - args.shape.row_start;
}

void gather(const EmbeddingArgs& args, std::size_t token) noexcept {
  const std::size_t features = args.shape.features;
  const WeightLayout layout = args.shape.layout;
  const std::size_t row = row_of(args, token);
  if (row >= args.shape.rows) {  // of a slice
    std::fill_n(args.y + token * features, features, 0.0f);
    return;
  }
  const auto* const table = reinterpret_cast<const std::uint32_t*>(args.table);
  const std::size_t tile_units = lines_per_tile(layout, features) * tile_outputs;
  const std::uint32_t* const unit = table + row / tile_outputs * tile_units + row % tile_outputs;
  float* const y = args.y + token * features;
  layout == WeightLayout::x16k1_f32 ? gather_f32(unit, features, y) : gather_bf16(unit, features, y);
}

}  // namespace

std::string find_error(const EmbeddingArgs& args) {
  const auto& [rows, features, layout, row_start, is_slice] = args.shape;
  const std::optional<std::size_t> size_bytes = packed_size_bytes(layout, rows, features);
  if (size_bytes != args.table_size_bytes) {
    return "Embedding: a table of " + std::to_string(rows) + " rows and " + std::to_string(features) +
           " features in layout " + std::string(id(layout)) +
           (size_bytes ? " has " + std::to_string(*size_bytes) + " bytes, not " + std::to_string(args.table_size_bytes)
                       : std::string(" is no matrix"));
  }
  for (std::size_t t = 0; t < args.num_tokens && !is_slice; ++t) {
    if (row_of(args, t) >= rows) {
      return "Embedding: token_ids[" + std::to_string(t) + "] is " + std::to_string(args.token_ids[t]) +
             ", outside the table of " + std::to_string(rows) + " rows";
    }
  }
  return {};
}

void embedding(KernelLevel /*level*/, const EmbeddingArgs& args, const ParallelFor& parallel_for) {
  const std::size_t lines = lines_per_tile(args.shape.layout, args.shape.features);
  const std::size_t tokens_per_task = std::max<std::size_t>(lines_per_task / lines, 1);
  parallel_for((args.num_tokens + tokens_per_task - 1) / tokens_per_task, [&](std::size_t task) {
    const std::size_t end = std::min((task + 1) * tokens_per_task, args.num_tokens);
    for (std::size_t token = task * tokens_per_task; token < end; ++token) gather(args, token);
  });
}

}  // namespace precast
