// SPDX-License-Identifier: Apache-2.0
#include "plugins/paged_attention/cpu/write_tile.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "plugins/cpu/bf16.h"
#include "plugins/cpu/math.h"
#include "plugins/paged_attention/cpu/kv_tile.h"

namespace precast {
namespace {

template <typename Element>
Element round_to(float value) noexcept {
  if constexpr (std::is_same_v<Element, Bf16>) {
    return round_to_bf16(value);
  } else {
    return value;
  }
}

// Element d of the K of lane `lane`, counted from the start of the K tile.
template <typename Element>
std::size_t k_index(std::size_t d, std::size_t lane) noexcept {
  if constexpr (std::is_same_v<Element, Bf16>) {
    return (d / 2 * tokens_per_tile + lane) * 2 + d % 2;
  } else {
    return d * tokens_per_tile + lane;
  }
}

// Element d of the V of lane `lane`, counted from the start of the V tile.
template <typename Element>
std::size_t v_index(std::size_t d, std::size_t lane, std::size_t head_dim) noexcept {
  if constexpr (std::is_same_v<Element, Bf16>) {
    return (lane / 2 * head_dim + d) * 2 + lane % 2;
  } else {
    return lane * head_dim + d;
  }
}

// What one token's heads are rotated by.
struct Rotation {
  const float* cos;
  const float* sin;
  std::size_t half;  // rotary_dim / 2
};

Rotation make_rotation(const PagedAttentionArgs& args, const RotatedQueries& queries, std::size_t row,
                       std::size_t position) noexcept {
  const std::size_t half = args.shape.rotary_dim / 2;
  float* const cos = queries.cos + row * half;
  float* const sin = queries.sin + row * half;
  for (std::size_t i = 0; i < half; ++i) {
    const math::SinCos unscaled = math::sin_cos(static_cast<float>(position) * args.inv_freq[i]);
    cos[i] = unscaled.cos * args.shape.rope_scaling;
    sin[i] = unscaled.sin * args.shape.rope_scaling;
  }
  return {cos, sin, half};
}

// Calls store(d, value) for each element of a rotated head.
template <typename Store>
void rotate_head(const float* x, std::size_t head_dim, const Rotation& rotation, const Store& store) noexcept {
  const std::size_t half = rotation.half;
  for (std::size_t i = 0; i < half; ++i) {
    store(i, x[i] * rotation.cos[i] - x[i + half] * rotation.sin[i]);
    store(i + half, x[i + half] * rotation.cos[i] + x[i] * rotation.sin[i]);
  }
  for (std::size_t d = 2 * half; d < head_dim; ++d) store(d, x[d]);
}

template <typename Element>
void write_queries(const PagedAttentionArgs& args, std::size_t row, const Rotation& rotation, Element* q) noexcept {
  const std::size_t head_dim = args.shape.head_dim;
  const std::size_t group = args.shape.queries_per_kv();
  const float* x = args.qkv + row * args.shape.qkv_features();
  for (std::size_t head = 0; head < args.shape.num_heads; ++head, x += head_dim) {
    Element* const rotated = q + ((head / group * args.num_tokens + row) * group + head % group) * head_dim;
    rotate_head(x, head_dim, rotation, [&](std::size_t d, float value) { rotated[d] = round_to<Element>(value); });
  }
}

template <typename Element>
void write_keys_and_values(const PagedAttentionArgs& args, const TileRows& rows, std::size_t row,
                           const Rotation& rotation) noexcept {
  const PagedAttentionShape& shape = args.shape;
  const std::size_t head_dim = shape.head_dim;
  const std::size_t position = rows.position + row - rows.first_row;
  const std::size_t lane = position % tokens_per_tile;
  const std::int32_t block =
      args.block_tables[rows.sequence * args.block_table_width + position / shape.tokens_per_block];
  const float* key = args.qkv + row * shape.qkv_features() + shape.num_heads * head_dim;
  const float* value = key + shape.num_kv_heads * head_dim;
  for (std::size_t head = 0; head < shape.num_kv_heads; ++head, key += head_dim, value += head_dim) {
    std::byte* const tile = find_tile(args, block, head, position % shape.tokens_per_block / tokens_per_tile);
    if (lane == 0) std::memset(tile, 0, 2 * tile_bytes(shape));
    auto* const k_tile = reinterpret_cast<Element*>(tile);
    auto* const v_tile = reinterpret_cast<Element*>(tile + tile_bytes(shape));
    rotate_head(key, head_dim, rotation, [&](std::size_t d, float rotated) {
      k_tile[k_index<Element>(d, lane)] = round_to<Element>(rotated);
    });
    for (std::size_t d = 0; d < head_dim; ++d) {
      v_tile[v_index<Element>(d, lane, head_dim)] = round_to<Element>(value[d]);
    }
  }
}

template <typename Element>
void write_rows(const PagedAttentionArgs& args, const TileRows& rows, const RotatedQueries& queries) noexcept {
  for (std::size_t i = 0; i < rows.num_rows; ++i) {
    const std::size_t row = rows.first_row + i;
    const Rotation rotation = make_rotation(args, queries, row, rows.position + i);
    write_queries(args, row, rotation, reinterpret_cast<Element*>(queries.q));
    write_keys_and_values<Element>(args, rows, row, rotation);
  }
}

// Calls f(TileRows) for all tiles of the step, in order.
template <typename F>
void for_each_tile(const PagedAttentionArgs& args, const F& f) {
  for (std::size_t s = 0; s < args.num_sequences; ++s) {
    auto row = static_cast<std::size_t>(args.query_starts[s]);
    const auto end_row = static_cast<std::size_t>(args.query_starts[s + 1]);
    std::size_t position = first_position(args, s);
    while (row < end_row) {
      const std::size_t num_rows = std::min(end_row - row, tokens_per_tile - position % tokens_per_tile);
      f(TileRows{.sequence = s, .position = position, .first_row = row, .num_rows = num_rows});
      row += num_rows;
      position += num_rows;
    }
  }
}

}  // namespace

TileRowsList list_tile_rows(const PagedAttentionArgs& args, Scratch& scratch) {
  std::size_t count = 0;
  for_each_tile(args, [&](const TileRows&) { ++count; });
  auto* const items = scratch.take<TileRows>(count);
  TileRows* next = items;
  for_each_tile(args, [&](const TileRows& rows) { *next++ = rows; });
  return {items, count};
}

RotatedQueries take_rotated_queries(const PagedAttentionArgs& args, Scratch& scratch) {
  const PagedAttentionShape& shape = args.shape;
  const std::size_t num_angles = args.num_tokens * (shape.rotary_dim / 2);
  return {.q = scratch.take<std::byte>(args.num_tokens * shape.num_heads * shape.head_dim * shape.element_bytes()),
          .cos = scratch.take<float>(num_angles),
          .sin = scratch.take<float>(num_angles)};
}

void write_tile(const PagedAttentionArgs& args, const TileRows& rows, const RotatedQueries& queries) noexcept {
  if (args.shape.kv_layout == KvLayout::f32) {
    write_rows<float>(args, rows, queries);
  } else {
    write_rows<Bf16>(args, rows, queries);
  }
}

}  // namespace precast
