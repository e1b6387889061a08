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

// What one token's heads are rotated by.
struct Rotation {
  const float* cos;
  const float* sin;
  std::size_t half;  // rotary_dim / 2
};

Rotation make_rotation(const PagedAttentionArgs& args, const RotatedQueries& queries, std::size_t row,
                       std::size_t position) noexcept {
  const std::size_t half = args.shape.rotary_dim / 2;
  if (half == 0) return {nullptr, nullptr, 0};
  const std::size_t past_start = position > args.shape.rope_start ? position - args.shape.rope_start : 0;
  const float* const inv_freq = args.inv_freq + std::min(past_start, args.num_rope_rows - 1) * half;
  float* const cos = queries.cos + row * half;
  float* const sin = queries.sin + row * half;
  for (std::size_t i = 0; i < half; ++i) {
    const math::SinCos unscaled = math::sin_cos(static_cast<float>(position) * inv_freq[i]);
    cos[i] = unscaled.cos * args.shape.rope_scaling;
    sin[i] = unscaled.sin * args.shape.rope_scaling;
  }
  return {cos, sin, half};
}

// A query or key head, normed where there is a weight: `x` itself or `memory`.
const float* norm_head(const PagedAttentionArgs& args, RmsNormRowKernel norm, const float* weight, const float* x,
                       float* memory) noexcept {
  if (weight == nullptr) return x;
  norm({.hidden_size = args.shape.head_dim,
        .epsilon = args.shape.qk_norm_epsilon,
        .x = x,
        .weight = weight,
        .residual = nullptr,
        .y = memory,
        .sum = nullptr});
  return memory;
}

template <typename Element>
void rotate_head(const float* x, std::size_t head_dim, const Rotation& rotation, Element* rotated) noexcept {
  const std::size_t half = rotation.half;
  for (std::size_t i = 0; i < half; ++i) {
    rotated[i] = round_to<Element>(x[i] * rotation.cos[i] - x[i + half] * rotation.sin[i]);
    rotated[i + half] = round_to<Element>(x[i + half] * rotation.cos[i] + x[i] * rotation.sin[i]);
  }
  for (std::size_t d = 2 * half; d < head_dim; ++d) rotated[d] = round_to<Element>(x[d]);
}

// Puts a head's K into lane `lane` of a K tile: [D][16] of fp32 or [D/2][16] of pairs of bf16.
void store_k(const float* k, std::size_t head_dim, std::size_t lane, float* k_tile) noexcept {
  for (std::size_t d = 0; d < head_dim; ++d) k_tile[d * tokens_per_tile + lane] = k[d];
}

void store_k(const Bf16* k, std::size_t head_dim, std::size_t lane, Bf16* k_tile) noexcept {
  for (std::size_t d = 0; d < head_dim; d += 2) std::memcpy(k_tile + d * tokens_per_tile + lane * 2, k + d, 4);
}

// Puts a head's V into lane `lane` of a V tile: [16][D] of fp32 or [8][D][2] of bf16.
void store_v(const float* v, std::size_t head_dim, std::size_t lane, float* v_tile) noexcept {
  std::copy(v, v + head_dim, v_tile + lane * head_dim);
}

void store_v(const float* v, std::size_t head_dim, std::size_t lane, Bf16* v_tile) noexcept {
  Bf16* const first = v_tile + (lane - lane % 2) * head_dim + lane % 2;
  for (std::size_t d = 0; d < head_dim; ++d) first[2 * d] = round_to_bf16(v[d]);
}

template <typename Element>
void write_queries(const PagedAttentionArgs& args, RmsNormRowKernel norm, std::size_t row, const Rotation& rotation,
                   float* normed, Element* q) noexcept {
  const std::size_t head_dim = args.shape.head_dim;
  const std::size_t group = args.shape.queries_per_kv();
  const float* x = args.qkv + row * args.shape.qkv_features();
  for (std::size_t head = 0; head < args.shape.num_heads; ++head, x += head_dim) {
    const std::size_t q_row = (head / group * args.num_tokens + row) * group + head % group;
    rotate_head(norm_head(args, norm, args.q_norm, x, normed), head_dim, rotation, q + q_row * head_dim);
  }
}

template <typename Element>
void write_keys_and_values(const PagedAttentionArgs& args, RmsNormRowKernel norm, std::size_t sequence,
                           std::size_t row, std::size_t position, const Rotation& rotation,
                           const HeadMemory& memory) noexcept {
  auto* const rotated = reinterpret_cast<Element*>(memory.rotated);
  const PagedAttentionShape& shape = args.shape;
  const std::size_t lane = position % tokens_per_tile;
  const std::size_t tile_in_block = position % shape.tokens_per_block / tokens_per_tile;
  const std::int32_t block = args.block_tables[sequence * args.block_table_width + position / shape.tokens_per_block];
  const float* key = args.qkv + row * shape.qkv_features() + shape.num_heads * shape.head_dim;
  const float* value = key + shape.num_kv_heads * shape.head_dim;
  for (std::size_t head = 0; head < shape.num_kv_heads; ++head, key += shape.head_dim, value += shape.head_dim) {
    std::byte* const tile = find_tile(args, block, head, tile_in_block);
    if (lane == 0) std::memset(tile, 0, 2 * tile_bytes(shape));
    rotate_head(norm_head(args, norm, args.k_norm, key, memory.normed), shape.head_dim, rotation, rotated);
    store_k(rotated, shape.head_dim, lane, reinterpret_cast<Element*>(tile));
    store_v(value, shape.head_dim, lane, reinterpret_cast<Element*>(tile + tile_bytes(shape)));
  }
}

template <typename Element>
void write_rows(const PagedAttentionArgs& args, RmsNormRowKernel norm, const TileRows& rows,
                const RotatedQueries& queries, const HeadMemory& memory) noexcept {
  for (std::size_t i = 0; i < rows.num_rows; ++i) {
    const std::size_t row = rows.first_row + i;
    const std::size_t position = rows.position + i;
    const Rotation rotation = make_rotation(args, queries, row, position);
    write_queries(args, norm, row, rotation, memory.normed, reinterpret_cast<Element*>(queries.q));
    write_keys_and_values<Element>(args, norm, rows.sequence, row, position, rotation, memory);
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

void write_tile(const PagedAttentionArgs& args, RmsNormRowKernel norm, const TileRows& rows,
                const RotatedQueries& queries, const HeadMemory& memory) noexcept {
  if (args.shape.kv_layout == KvLayout::f32) {
    write_rows<float>(args, norm, rows, queries, memory);
  } else {
    write_rows<Bf16>(args, norm, rows, queries, memory);
  }
}

}  // namespace precast
