// SPDX-License-Identifier: Apache-2.0
// The CPU kernels of PagedAttention. What it computes, in which order, and how a block of the pool is laid out is in
// plugins/paged_attention/schema.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "plugins/cpu/kernel.h"
#include "plugins/cpu/scratch.h"

namespace precast {

enum class KvLayout {
  f32,   // "kv16.f32/1"
  bf16,  // "kv16.bf16/1"
};

// The layout with this id; nothing where there is none.
std::optional<KvLayout> parse_kv_layout(std::string_view id) noexcept;

// The op's attributes, as in schema.py.
struct PagedAttentionShape {
  std::size_t num_heads = 0;
  std::size_t num_kv_heads = 0;
  std::size_t head_dim = 0;
  std::size_t rotary_dim = 0;  // 0: no rotary embedding
  std::size_t tokens_per_block = 0;
  KvLayout kv_layout = KvLayout::f32;
  float scale = 1.0f;
  float rope_scaling = 1.0f;
  std::size_t rope_start = 0;  // up to this position, the first row of inv_freq rotates
  float qk_norm_epsilon = 0.0f;
  std::size_t window = 0;  // positions that a row sees, its own included; 0: all

  // The first position that a row at `position` sees: w of the schema.
  std::size_t first_visible(std::size_t position) const noexcept {
    return window == 0 || position < window ? 0 : position - window + 1;
  }
  std::size_t queries_per_kv() const noexcept { return num_heads / num_kv_heads; }
  std::size_t qkv_features() const noexcept { return (num_heads + 2 * num_kv_heads) * head_dim; }
  std::size_t element_bytes() const noexcept { return kv_layout == KvLayout::f32 ? 4 : 2; }
  std::size_t block_bytes() const noexcept {
    return 2 * num_kv_heads * tokens_per_block * head_dim * element_bytes();
  }
};

// One call. Arrays are row-major and belong to the caller; `output` and `kv` overlap nothing else.
struct PagedAttentionArgs {
  PagedAttentionShape shape;
  std::size_t num_tokens = 0;         // T
  std::size_t num_sequences = 0;      // S
  std::size_t block_table_width = 0;  // B
  std::size_t num_blocks = 0;
  const float* qkv = nullptr;                     // [T, qkv_features]
  const std::int32_t* query_starts = nullptr;     // [S + 1]
  const std::int32_t* context_lengths = nullptr;  // [S]
  const std::int32_t* block_tables = nullptr;     // [S, B]
  std::size_t num_rope_rows = 0;                  // F, if there is a rotary embedding
  const float* inv_freq = nullptr;                // [F, rotary_dim / 2]
  const float* q_norm = nullptr;                  // [head_dim]; both null: queries and keys are not normed
  const float* k_norm = nullptr;                  // [head_dim]
  std::byte* kv = nullptr;                        // [num_blocks, block_bytes], changed
  float* output = nullptr;                        // [T, num_heads * head_dim]
};

// Why this shape is no shape of the op, in one sentence; empty if it is one. For when a kernel is created.
std::string find_error(const PagedAttentionShape& shape);

// Why these arguments would read or write out of bounds, in one sentence; empty if they would not. Reads the index
// arrays only. paged_attention() trusts its arguments: whoever has not made them itself asks here first.
std::string find_error(const PagedAttentionArgs& args);

// Writes K and V of the step into the pool, then attends. Throws std::bad_alloc, before anything is written.
void paged_attention(KernelLevel level, const PagedAttentionArgs& args, const ParallelFor& parallel_for,
                     Scratch& scratch);

}  // namespace precast
