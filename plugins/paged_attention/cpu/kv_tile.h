// SPDX-License-Identifier: Apache-2.0
// Where things lie in the block pool; schema.py has the drawing. Inside this op only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "plugins/paged_attention/cpu/paged_attention.h"

namespace precast {

inline constexpr std::size_t tokens_per_tile = 16;
inline constexpr std::size_t tokens_per_split = 512;
inline constexpr std::size_t tiles_per_split = tokens_per_split / tokens_per_tile;

// Bytes of a K tile, and of a V tile: a multiple of 64 for every layout and every even head_dim.
[[maybe_unused]] static inline std::size_t tile_bytes(const PagedAttentionShape& shape) noexcept {
  return tokens_per_tile * shape.head_dim * shape.element_bytes();
}

// A K tile: number `tile` of those that a block has for one KV head. Its V tile lies behind it.
[[maybe_unused]] static inline std::byte* find_tile(const PagedAttentionArgs& args, std::int32_t block,
                                                    std::size_t kv_head, std::size_t tile) noexcept {
  const std::size_t tiles_per_block = args.shape.tokens_per_block / tokens_per_tile;
  return args.kv + static_cast<std::size_t>(block) * args.shape.block_bytes() +
         (kv_head * tiles_per_block + tile) * 2 * tile_bytes(args.shape);
}

// The absolute position of a sequence's first row of this step.
[[maybe_unused]] static inline std::size_t first_position(const PagedAttentionArgs& args,
                                                          std::size_t sequence) noexcept {
  return static_cast<std::size_t>(args.context_lengths[sequence] -
                                  (args.query_starts[sequence + 1] - args.query_starts[sequence]));
}

}  // namespace precast
