// SPDX-License-Identifier: Apache-2.0
// What may be wrong with the arguments of PagedAttention.
#include <cmath>
#include <cstdint>
#include <string>

#include "plugins/paged_attention/cpu/kv_tile.h"
#include "plugins/paged_attention/cpu/paged_attention.h"

namespace precast {
namespace {

std::string text(std::size_t value) { return std::to_string(value); }
std::string text(std::int32_t value) { return std::to_string(value); }

std::string find_error_of_starts(const PagedAttentionArgs& args) {
  if (args.num_sequences == 0) return "PagedAttention: a step needs at least one sequence";
  if (args.query_starts[0] != 0) return "PagedAttention: query_starts[0] is " + text(args.query_starts[0]) + ", not 0";
  for (std::size_t s = 0; s < args.num_sequences; ++s) {
    if (args.query_starts[s + 1] <= args.query_starts[s]) {
      return "PagedAttention: query_starts[" + text(s + 1) + "] is " + text(args.query_starts[s + 1]) +
             ", not above the one before it, " + text(args.query_starts[s]);
    }
  }
  const std::int32_t last = args.query_starts[args.num_sequences];
  if (static_cast<std::size_t>(last) != args.num_tokens) {
    return "PagedAttention: query_starts ends with " + text(last) + ", but qkv has " + text(args.num_tokens) + " rows";
  }
  return {};
}

std::string find_error_of_sequence(const PagedAttentionArgs& args, std::size_t s) {
  const std::int32_t context = args.context_lengths[s];
  const std::int32_t num_rows = args.query_starts[s + 1] - args.query_starts[s];
  if (context < num_rows) {
    return "PagedAttention: context_lengths[" + text(s) + "] is " + text(context) + ", less than the sequence's " +
           text(num_rows) + " rows";
  }
  const std::size_t per_block = args.shape.tokens_per_block;
  const std::size_t num_used = (static_cast<std::size_t>(context) + per_block - 1) / per_block;
  if (num_used > args.block_table_width) {
    return "PagedAttention: sequence " + text(s) + " has " + text(context) + " tokens of context and needs " +
           text(num_used) + " blocks of " + text(per_block) + ", but the block table holds " +
           text(args.block_table_width);
  }
  const std::size_t first_seen = args.shape.first_visible(first_position(args, s));
  for (std::size_t b = first_seen / per_block; b < num_used; ++b) {
    const std::int32_t block = args.block_tables[s * args.block_table_width + b];
    if (block < 0 || static_cast<std::size_t>(block) >= args.num_blocks) {
      return "PagedAttention: block_tables[" + text(s) + "][" + text(b) + "] is " + text(block) + "; the pool has " +
             text(args.num_blocks) + " blocks";
    }
  }
  return {};
}

}  // namespace

std::optional<KvLayout> parse_kv_layout(std::string_view id) noexcept {
  if (id == "kv16.f32/1") return KvLayout::f32;
  if (id == "kv16.bf16/1") return KvLayout::bf16;
  return std::nullopt;
}

std::string find_error(const PagedAttentionShape& shape) {
  if (shape.num_heads == 0 || shape.num_kv_heads == 0 || shape.num_heads % shape.num_kv_heads != 0) {
    return "PagedAttention: " + text(shape.num_heads) + " query heads cannot share " + text(shape.num_kv_heads) +
           " KV heads evenly";
  }
  if (shape.head_dim == 0 || shape.head_dim % 2 != 0) {
    return "PagedAttention: head_dim is " + text(shape.head_dim) + "; it must be positive and even";
  }
  if (shape.rotary_dim > shape.head_dim || shape.rotary_dim % 2 != 0) {
    return "PagedAttention: rotary_dim is " + text(shape.rotary_dim) + "; it must be even and at most head_dim, " +
           text(shape.head_dim);
  }
  if (shape.tokens_per_block == 0 || shape.tokens_per_block % tokens_per_tile != 0) {
    return "PagedAttention: tokens_per_block is " + text(shape.tokens_per_block) +
           "; it must be a positive multiple of " + text(tokens_per_tile);
  }
  if (!std::isfinite(shape.scale) || !std::isfinite(shape.rope_scaling)) {
    return "PagedAttention: scale and rope_scaling must be finite";
  }
  if (!std::isfinite(shape.qk_norm_epsilon) || shape.qk_norm_epsilon < 0.0f) {
    return "PagedAttention: qk_norm_epsilon must be finite and not negative";
  }
  return {};
}

std::string find_error(const PagedAttentionArgs& args) {
  if ((args.q_norm == nullptr) != (args.k_norm == nullptr)) {
    return "PagedAttention: q_norm and k_norm must both be given, or neither";
  }
  if (args.shape.rotary_dim > 0 && args.num_rope_rows == 0) return "PagedAttention: inv_freq has no rows";
  std::string error = find_error_of_starts(args);
  for (std::size_t s = 0; error.empty() && s < args.num_sequences; ++s) error = find_error_of_sequence(args, s);
  return error;
}

}  // namespace precast
