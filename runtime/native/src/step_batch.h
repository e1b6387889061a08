// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace precast {

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
  std::vector<int32_t> block_tables;     // [S, block_table_width], row-major; -1 behind a sequence's last block
  int32_t block_table_width = 0;         // B; block_tables[s][p / tokens_per_block] holds position p, for p < context_lengths[s]
  std::vector<int32_t> logit_rows;       // [R], ascending rows of [0, T) whose logits are wanted; R may be 0

  std::size_t num_tokens() const noexcept { return token_ids.size(); }
  std::size_t num_sequences() const noexcept { return context_lengths.size(); }
};

}  // namespace precast
