// SPDX-License-Identifier: Apache-2.0
// The inner loop of phase 2 at each kernel level: some rows of one sequence and KV head against one split of the
// context. It knows nothing of blocks, sequences or threads. Inside this op only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "plugins/cpu/kernel.h"
#include "plugins/paged_attention/cpu/paged_attention.h"

namespace precast {

// What attention to one split gives, before splits merge: m, l and a of the schema.
struct SplitResult {
  float* max;       // [num_rows]
  float* sum;       // [num_rows]
  float* weighted;  // [num_rows, head_dim]
};

struct AttendSplitArgs {
  std::size_t head_dim;
  float scale;
  std::size_t num_rows;  // queries: tokens x heads of the group
  const void* q;         // [num_rows, head_dim], rotated and rounded to the type of the cache
  // [num_rows] each, ascending: row r sees tokens first_visible[r] .. end_visible[r] - 1 of the split, at least one.
  const std::size_t* first_visible;
  const std::size_t* end_visible;
  // The split's K tiles, each with its V tile behind it, from the one that holds first_visible[0] to the last that any
  // row sees. There may be nothing behind the other pointers.
  const std::byte* const* tiles;
  // K tiles first_next_tile .. end_next_tile - 1 are likely to be asked for next: only ever prefetched.
  const std::byte* const* next_tiles;
  std::size_t first_next_tile;
  std::size_t end_next_tile;
  float* scores;       // [num_rows, 512] working memory at a multiple of 64 bytes
  SplitResult result;  // written
};

using AttendSplit = void (*)(const AttendSplitArgs&) noexcept;

void attend_split_f32_portable(const AttendSplitArgs& args) noexcept;
void attend_split_bf16_portable(const AttendSplitArgs& args) noexcept;
void attend_split_f32_avx2(const AttendSplitArgs& args) noexcept;
void attend_split_bf16_avx2(const AttendSplitArgs& args) noexcept;
void attend_split_f32_avx512(const AttendSplitArgs& args) noexcept;
void attend_split_bf16_avx512(const AttendSplitArgs& args) noexcept;

// The kernel for this level and cache.
AttendSplit attend_split_kernel(KernelLevel level, KvLayout layout) noexcept;

}  // namespace precast
