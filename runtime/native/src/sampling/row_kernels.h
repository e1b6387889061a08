#pragma once

#include <cstddef>
#include <cstdint>

#include "plugins/cpu/kernel.h"
#include "runtime/native/src/sampling/noise.h"
#include "runtime/native/src/sampling/row.h"

namespace precast {

struct RowScan {
  float max = 0.0F;  ///< the largest logit; with NaN, any number
  bool has_nan = false;
  double mass = 0.0;  ///< sum of exp((logit - max) / mass_temperature), where that was asked for
};

struct DrawnToken {
  std::int32_t id = -1;
  double score = 0.0;  ///< (logit - Row::max) / temperature + gumbel_noise
};

/// The passes over a row, at one kernel level. Every level gives the same bits: comparisons are exact, masses are summed in
/// one order without fused multiply-adds, and draw uses vectors only to pass over tokens that cannot win.
///
/// Masses are right to about 1e-6 of the row's; one token's below 2^-126 counts as that.
struct RowKernels {
  /// Writes the largest logit of each block to `block_max`, and the logits themselves to `copy` unless it is nullptr.
  /// `mass_temperature` is 0 where nobody asks for the mass. Memory is what this pass waits for, so the mass is nearly free.
  RowScan (*scan)(const float* logits, std::size_t num_tokens, float* block_max, float* copy,
                  float mass_temperature) noexcept;

  /// The token with the largest score among those before `end`; the smallest id among equals. `first` is the most likely
  /// token and comes before `end`. `temperature` >= min_temperature.
  DrawnToken (*draw)(const Row& row, std::int32_t first, const Place& end, float temperature,
                     const NoiseKey& key) noexcept;

  /// Sum of exp((logit - max) / temperature) over the tokens before `pivot`.
  double (*mass_before)(const Row& row, const Place& pivot, float temperature) noexcept;

  /// How many tokens come before `pivot`.
  std::size_t (*count_before)(const Row& row, const Place& pivot) noexcept;

  /// Writes every token with a logit of at least `logit` to `places`, which has room for all tokens, in order of id; how many
  /// there are.
  std::size_t (*collect)(const Row& row, float logit, Place* places) noexcept;
};

/// The kernels of a level that the processor has.
const RowKernels& row_kernels(KernelLevel level) noexcept;

extern const RowKernels row_kernels_portable;
extern const RowKernels row_kernels_avx2;    // x86-64 only
extern const RowKernels row_kernels_avx512;  // x86-64 only

}  // namespace precast
