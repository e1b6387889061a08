// SPDX-License-Identifier: Apache-2.0
// How phase 2 is divided into tasks. A plan decides who computes what and never what comes out: any plan gives the same
// bits, because rows do not touch each other and splits of the context always merge in ascending order. Inside this op
// only.
#pragma once

#include <cstddef>

#include "plugins/cpu/scratch.h"
#include "plugins/paged_attention/cpu/attend_split.h"
#include "plugins/paged_attention/cpu/paged_attention.h"

namespace precast {

// A few neighbouring tokens of one sequence, with all query heads of one KV head: they share the K and V they read.
// Row r of the block is token r / queries_per_kv, query head r % queries_per_kv of the group.
struct QueryBlock {
  std::size_t sequence;
  std::size_t kv_head;
  std::size_t first_token;  // of the packed tokens
  std::size_t num_tokens;
  std::size_t position;       // absolute, of the first token
  std::size_t first_visible;  // the first position that any token sees: that of the first token
  std::size_t first_split;    // of the context: the one that holds first_visible
  std::size_t num_splits;     // from there to the one that holds the last token
  float* partials;            // results of all those splits, if several tasks share the block; else null

  // Behind the last position that any token sees.
  std::size_t end_visible() const noexcept { return position + num_tokens; }
};

// Splits first_split .. end_split - 1 of the context, for a block.
struct AttendTask {
  const QueryBlock* block;
  std::size_t first_split;
  std::size_t end_split;
  std::size_t cost;  // about proportional to its time
};

// All arrays are scratch memory.
struct AttentionPlan {
  const QueryBlock* blocks;
  std::size_t num_blocks;
  const AttendTask* tasks;  // the most expensive first
  std::size_t num_tasks;
  std::size_t max_rows;    // of a block
  std::size_t total_cost;  // of all tasks
  bool has_partials;
};

AttentionPlan plan_attention(const PagedAttentionArgs& args, std::size_t threads, Scratch& scratch);

// Where split `split` of the context goes, of a block with partials: num_rows maxima, then sums, then weighted values.
SplitResult partial_result(const QueryBlock& block, const PagedAttentionShape& shape, std::size_t split) noexcept;

}  // namespace precast
