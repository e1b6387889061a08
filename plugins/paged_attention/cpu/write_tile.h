// SPDX-License-Identifier: Apache-2.0
// Phase 1: norms and rotates queries and keys, rounds them, and writes K and V into the pool. Inside this op only.
#pragma once

#include <cstddef>

#include "plugins/cpu/scratch.h"
#include "plugins/paged_attention/cpu/paged_attention.h"
#include "plugins/rms_norm/cpu/rms_norm_row.h"

namespace precast {

// Neighbouring rows of one sequence that fall into one tile: the unit of writing, because whoever writes a tile's first
// token zeroes the whole tile.
struct TileRows {
  std::size_t sequence;
  std::size_t position;   // absolute, of the first row
  std::size_t first_row;  // of the packed tokens
  std::size_t num_rows;   // 1 .. 16
};

// What phase 1 leaves for phase 2.
struct RotatedQueries {
  // The query heads of a KV head lie together: [num_kv_heads, T, queries_per_kv, head_dim] of the cache's type.
  std::byte* q;
  float* cos;  // [T, rotary_dim / 2], used in phase 1 only
  float* sin;
};

// All of the step's rows, tile by tile. The array is scratch memory.
struct TileRowsList {
  const TileRows* items;
  std::size_t count;
};

// What one worker needs for one head at a time.
struct HeadMemory {
  float* normed;       // [head_dim]
  std::byte* rotated;  // [head_dim] of the cache's type
};

TileRowsList list_tile_rows(const PagedAttentionArgs& args, Scratch& scratch);
RotatedQueries take_rotated_queries(const PagedAttentionArgs& args, Scratch& scratch);

// Safe to call at the same time for different items, each with a head memory of its own.
void write_tile(const PagedAttentionArgs& args, RmsNormRowKernel norm, const TileRows& rows,
                const RotatedQueries& queries, const HeadMemory& memory) noexcept;

}  // namespace precast
