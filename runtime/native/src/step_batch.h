// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace precast {

// The blocks of a step's sequences in one KV group. Position p of sequence s lies in block
// blocks[s * width + p / tokens_per_block], for all p < context_lengths[s] that a row of the step sees in this group.
struct BlockTable {
  std::vector<int32_t> blocks;  // [S, width] row-major; -1: no block (behind the last one, or below the window)
  int32_t width = 0;
};

// One forward pass, described completely. The scheduler writes it, a session reads it; nobody changes it until the step has
// been collected.
//
// The tokens of all sequences lie behind one another ("packed"): sequence s owns rows query_starts[s] .. query_starts[s+1]-1.
//
//     token_ids        [ a0 a1 a2 a3 | b0 | c0 c1 ]        T = 7 rows, S = 3 sequences
//     query_starts     [ 0             4    5      7 ]
//     context_lengths  [ 4             9    34 ]           tokens in the KV cache after this step
//     logit_rows       [ 3             4 ]                 c is in the middle of its prompt: no logits wanted
struct StepBatch {
  std::vector<int32_t> token_ids;        // [T], T >= 1, each in [0, vocab_size)
  std::vector<int32_t> query_starts;     // [S + 1], ascending, first 0, last T, every sequence has at least one row
  std::vector<int32_t> context_lengths;  // [S], row i of sequence s is at position context_lengths[s] - rows(s) + i >= 0
  std::vector<BlockTable> block_tables;  // one for each KV group, in the order of the manifest's kv_groups
  std::vector<int32_t> logit_rows;       // [R], ascending rows of [0, T) whose logits are wanted; R may be 0

  std::size_t num_tokens() const noexcept { return token_ids.size(); }
  std::size_t num_sequences() const noexcept { return context_lengths.size(); }
};

}  // namespace precast
