#pragma once

#include <cstddef>
#include <span>

#include "runtime/native/src/step_batch.h"

namespace precast {

/// How large the largest step is.
struct StepLimits {
  std::size_t max_tokens = 0;         ///< of a step
  std::size_t max_sequences = 0;      ///< of a step
  std::size_t max_table_entries = 0;  ///< of all block tables of a step together
  std::size_t max_logit_rows = 0;     ///< of a step
  std::size_t vocab_size = 0;
};

/// Bytes of the largest step, encoded.
std::size_t max_step_bytes(const StepLimits& limits) noexcept;

/// Writes a step for ranks of the same build: id, then every array behind its length. Returns how many bytes. Throws
/// std::logic_error where `to` is too small.
std::size_t encode_step(const StepBatch& batch, std::span<std::byte> to);

/// The opposite. Throws std::logic_error for bytes that are no step.
void decode_step(std::span<const std::byte> from, StepBatch& batch);

}  // namespace precast
