// A small world for tests of PagedAttention: sequences with all their tokens known, a poisoned pool, block tables in a
// random order, and steps that feed the sequences in any pieces.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "plugins/cpu/scratch.h"
#include "plugins/paged_attention/cpu/paged_attention.h"
#include "tests/native/check.h"
#include "tests/native/kernel_inputs.h"

namespace precast::test {

// Inverse frequencies as in Llama: theta^(-2i / rotary_dim), where theta is 10000 in the first row, 20000 in the second...
inline std::vector<float> inverse_frequencies(std::size_t rotary_dim, std::size_t num_rows = 1) {
  const std::size_t half = rotary_dim / 2;
  std::vector<float> inv_freq(num_rows * half);
  for (std::size_t i = 0; i < inv_freq.size(); ++i) {
    const float theta = 10000.0f * static_cast<float>(i / half + 1);
    inv_freq[i] = 1.0f / std::pow(theta, 2.0f * static_cast<float>(i % half) / static_cast<float>(rotary_dim));
  }
  return inv_freq;
}

struct AttentionConfig {
  PagedAttentionShape shape;
  KernelLevel level = KernelLevel::portable;
  unsigned block_seed = 0;   // decides which blocks the sequences get
  std::vector<float> q_norm{};   // weights of the norm of queries and keys; empty: none
  std::vector<float> k_norm{};
  std::size_t num_rope_rows = 1;
  std::uint8_t poison = 0xFF;  // every byte of the pool before the first step; 0xFF makes NaNs of both types
};

// Tokens begin .. end - 1 of a sequence, as a step's share.
struct Chunk {
  std::size_t sequence;
  std::size_t begin;
  std::size_t end;
};

class AttentionWorld {
 public:
  // sequences[s] holds the qkv rows of all of its tokens.
  AttentionWorld(const AttentionConfig& config, std::vector<std::vector<float>> sequences)
      : config_(config), sequences_(std::move(sequences)), inv_freq_(inverse_frequencies(config.shape.rotary_dim, config.num_rope_rows)) {
    const std::size_t per_block = config_.shape.tokens_per_block;
    std::size_t num_blocks = 3;  // that nobody uses
    for (std::size_t s = 0; s < sequences_.size(); ++s) {
      width_ = std::max(width_, (length(s) + per_block - 1) / per_block);
      num_blocks += (length(s) + per_block - 1) / per_block;
      outputs_.emplace_back(length(s) * out_features());
    }
    std::vector<std::int32_t> blocks(num_blocks);
    std::iota(blocks.begin(), blocks.end(), 0);
    std::shuffle(blocks.begin(), blocks.end(), std::mt19937(config.block_seed));
    tables_.assign(sequences_.size(), std::vector<std::int32_t>(width_, -1));
    for (std::size_t s = 0; s < sequences_.size(); ++s) {
      for (std::size_t b = 0; b * per_block < length(s); ++b) {
        tables_[s][b] = blocks.back();
        blocks.pop_back();
      }
    }
    num_blocks_ = num_blocks;
    // Scratch memory, because it is aligned as a session's pool is.
    const std::size_t pool_bytes = num_blocks * config_.shape.block_bytes();
    pool_ = pool_memory_.take<std::byte>(pool_bytes);
    std::memset(pool_, config.poison, pool_bytes);
  }

  std::size_t length(std::size_t s) const { return sequences_[s].size() / config_.shape.qkv_features(); }
  std::size_t out_features() const { return config_.shape.num_heads * config_.shape.head_dim; }

  // One call of the op.
  void step(const std::vector<Chunk>& chunks, const ParallelFor& parallel_for = ParallelFor::serial()) {
    std::vector<float> qkv;
    std::vector<std::int32_t> query_starts{0};
    std::vector<std::int32_t> context_lengths;
    std::vector<std::int32_t> block_tables;
    const std::size_t features = config_.shape.qkv_features();
    for (const Chunk& chunk : chunks) {
      const float* const rows = sequences_[chunk.sequence].data();
      qkv.insert(qkv.end(), rows + chunk.begin * features, rows + chunk.end * features);
      query_starts.push_back(query_starts.back() + static_cast<std::int32_t>(chunk.end - chunk.begin));
      context_lengths.push_back(static_cast<std::int32_t>(chunk.end));
      block_tables.insert(block_tables.end(), tables_[chunk.sequence].begin(), tables_[chunk.sequence].end());
    }
    std::vector<float> output(static_cast<std::size_t>(query_starts.back()) * out_features());
    const PagedAttentionArgs args{.shape = config_.shape,
                                  .num_tokens = static_cast<std::size_t>(query_starts.back()),
                                  .num_sequences = chunks.size(),
                                  .block_table_width = width_,
                                  .num_blocks = num_blocks_,
                                  .qkv = qkv.data(),
                                  .query_starts = query_starts.data(),
                                  .context_lengths = context_lengths.data(),
                                  .block_tables = block_tables.data(),
                                  .num_rope_rows = config_.num_rope_rows,
                                  .inv_freq = inv_freq_.empty() ? nullptr : inv_freq_.data(),
                                  .q_norm = config_.q_norm.empty() ? nullptr : config_.q_norm.data(),
                                  .k_norm = config_.k_norm.empty() ? nullptr : config_.k_norm.data(),
                                  .kv = pool_,
                                  .output = output.data()};
    CHECK_EQ(find_error(args), "");
    paged_attention(config_.level, args, parallel_for, scratch_);
    for (std::size_t c = 0; c < chunks.size(); ++c) {
      const auto begin = output.begin() + query_starts[c] * static_cast<std::ptrdiff_t>(out_features());
      const auto end = output.begin() + query_starts[c + 1] * static_cast<std::ptrdiff_t>(out_features());
      std::copy(begin, end,
                outputs_[chunks[c].sequence].begin() + static_cast<std::ptrdiff_t>(chunks[c].begin * out_features()));
    }
  }

  // All of a sequence, one chunk a step; `ends` are where chunks end, the last one being the sequence's length. Before
  // each step, the blocks that its rows no longer see are taken away.
  void feed(std::size_t sequence, const std::vector<std::size_t>& ends,
            const ParallelFor& parallel_for = ParallelFor::serial()) {
    std::size_t begin = 0;
    for (const std::size_t end : ends) {
      free_below(sequence, config_.shape.first_visible(begin));
      step({{sequence, begin, end}}, parallel_for);
      begin = end;
    }
  }

  // Takes away the blocks that lie entirely below a position: their entries become -1, and their bytes NaNs.
  void free_below(std::size_t sequence, std::size_t position) {
    for (std::size_t b = 0; b < position / config_.shape.tokens_per_block; ++b) {
      std::int32_t& entry = tables_[sequence][b];
      if (entry >= 0) std::memset(block(entry), 0xFF, config_.shape.block_bytes());
      entry = -1;
    }
  }

  // Puts K and V of tokens 0 .. end - 1 into the pool without computing anything: a long context for little work. Only
  // for a shape without rotation, and an fp32 cache.
  void store(std::size_t sequence, std::size_t end) {
    const PagedAttentionShape& shape = config_.shape;
    CHECK(shape.rotary_dim == 0 && shape.kv_layout == KvLayout::f32);
    const std::size_t dim = shape.head_dim;
    for (std::size_t t = 0; t < end; ++t) {
      const float* const k = &sequences_[sequence][t * shape.qkv_features() + shape.num_heads * dim];
      const float* const v = k + shape.num_kv_heads * dim;
      for (std::size_t head = 0; head < shape.num_kv_heads; ++head) {
        const std::size_t in_block = t % shape.tokens_per_block;
        const std::size_t tile = head * (shape.tokens_per_block / 16) + in_block / 16;
        float* const k_tile =
            reinterpret_cast<float*>(block(tables_[sequence][t / shape.tokens_per_block])) + tile * 2 * 16 * dim;
        for (std::size_t d = 0; d < dim; ++d) {
          k_tile[d * 16 + t % 16] = k[head * dim + d];
          k_tile[(16 + t % 16) * dim + d] = v[head * dim + d];
        }
      }
    }
  }

  // [length, num_heads * head_dim]: what all steps so far gave for a sequence.
  const std::vector<float>& output(std::size_t sequence) const { return outputs_[sequence]; }
  std::vector<float>& tokens(std::size_t sequence) { return sequences_[sequence]; }
  const std::vector<std::int32_t>& table(std::size_t sequence) const { return tables_[sequence]; }
  std::vector<std::int32_t>& table(std::size_t sequence) { return tables_[sequence]; }
  std::byte* block(std::int32_t id) const {
    return pool_ + static_cast<std::size_t>(id) * config_.shape.block_bytes();
  }

 private:
  AttentionConfig config_;
  std::vector<std::vector<float>> sequences_;
  std::vector<float> inv_freq_;
  std::vector<std::vector<float>> outputs_;
  std::vector<std::vector<std::int32_t>> tables_;
  std::size_t width_ = 0;
  std::size_t num_blocks_ = 0;
  Scratch pool_memory_;
  Scratch scratch_;
  std::byte* pool_ = nullptr;
};

inline PagedAttentionShape attention_shape(std::size_t num_heads, std::size_t num_kv_heads, std::size_t head_dim,
                                           KvLayout layout, std::size_t tokens_per_block = 16) {
  return {.num_heads = num_heads,
          .num_kv_heads = num_kv_heads,
          .head_dim = head_dim,
          .rotary_dim = head_dim,
          .tokens_per_block = tokens_per_block,
          .kv_layout = layout,
          .scale = 1.0f / std::sqrt(static_cast<float>(head_dim)),
          .rope_scaling = 1.0f,
          .rope_start = 0,
          .qk_norm_epsilon = 0.0f,
          .window = 0};
}

// Every level of this machine with every cache type.
inline std::vector<AttentionConfig> level_and_layout_configs(std::size_t num_heads, std::size_t num_kv_heads,
                                                             std::size_t head_dim, std::size_t tokens_per_block = 16) {
  std::vector<AttentionConfig> configs;
  for (const KernelLevel level : levels_of_this_machine()) {
    for (const KvLayout layout : {KvLayout::f32, KvLayout::bf16}) {
      configs.push_back({.shape = attention_shape(num_heads, num_kv_heads, head_dim, layout, tokens_per_block),
                         .level = level});
    }
  }
  return configs;
}

inline std::vector<float> random_tokens(const PagedAttentionShape& shape, std::size_t num_tokens, unsigned seed) {
  return random_values(num_tokens * shape.qkv_features(), seed);
}

}  // namespace precast::test
