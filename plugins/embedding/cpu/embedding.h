// SPDX-License-Identifier: Apache-2.0
// The CPU kernel of Embedding. What it computes is in plugins/embedding/schema.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "plugins/cpu/kernel.h"
#include "plugins/cpu/weight_layout.h"

namespace precast {

// The op's attributes, as in schema.py.
struct EmbeddingShape {
  std::size_t rows = 0;      // the vocabulary, or a slice of it
  std::size_t features = 0;  // H
  WeightLayout layout = WeightLayout::x16k1_f32;
  std::size_t row_start = 0;  // token id of the first row
  bool is_slice = false;      // ids outside the table give zeros
};

// One call. Arrays are row-major and belong to the caller; `y` overlaps nothing else.
struct EmbeddingArgs {
  EmbeddingShape shape;
  std::size_t num_tokens = 0;               // T
  const std::int32_t* token_ids = nullptr;  // [T]
  const std::byte* table = nullptr;         // [rows, H], packed
  std::size_t table_size_bytes = 0;
  float* y = nullptr;  // [T, H]
};

// Why these arguments would read out of bounds, in one sentence; empty if they would not. Reads the token ids only.
// embedding() trusts its arguments: whoever has not made them itself asks here first.
std::string find_error(const EmbeddingArgs& args);

// Copies numbers, which every processor does alike: all levels run the same code.
void embedding(KernelLevel level, const EmbeddingArgs& args, const ParallelFor& parallel_for);

}  // namespace precast
