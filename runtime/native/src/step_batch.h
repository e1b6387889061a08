// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace precast {

// Which blocks the sequences of a step have in one KV group: [S, width], row-major. Entry p / tokens_per_block of a row holds
// position p; -1: no block, behind the last one or where no token of this step looks any more.
struct BlockTable {
  std::vector<int32_t> blocks;
  int32_t width = 0;
};

// A token that is not known yet: row `row` of this step is what row `source_row` of the logit_rows of step `source_step`,
// which is in flight, will choose.
struct TokenSource {
  int32_t row = 0;
  int32_t source_row = 0;
  uint64_t source_step = 0;
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
  uint64_t id = 0;                       // 1, 2, 3, ... in the order of scheduling
  std::vector<int32_t> token_ids;        // [T], T >= 1, each in [0, vocab_size), or -1 where token_sources has the row
  std::vector<int32_t> query_starts;     // [S + 1], ascending, first 0, last T, every sequence has at least one row
  std::vector<int32_t> context_lengths;  // [S], row i of sequence s is at position context_lengths[s] - rows(s) + i >= 0
  std::vector<BlockTable> block_tables;  // one for each KV group
  std::vector<int32_t> logit_rows;       // [R], ascending rows of [0, T) whose logits are wanted; R may be 0
  std::vector<uint8_t> needs_logits;     // [R]; 1: the whole row. 0: the token that the session chooses will do, or
  std::vector<int32_t> num_candidates;   // [R]; so many of the row's most likely tokens; 0: none. Not 0 only where
                                         // needs_logits is 0, and at most Session::max_candidates()
  std::vector<TokenSource> token_sources;  // ascending in row; only for sessions that choose tokens

  std::size_t num_tokens() const noexcept { return token_ids.size(); }
  std::size_t num_sequences() const noexcept { return context_lengths.size(); }
};

}  // namespace precast
