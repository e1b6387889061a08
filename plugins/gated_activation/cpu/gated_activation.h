// SPDX-License-Identifier: Apache-2.0
// The CPU kernels of GatedActivation. What it computes is in plugins/gated_activation/schema.py.
#pragma once

#include <cstddef>
#include <optional>
#include <string_view>

#include "plugins/cpu/kernel.h"

namespace precast {

enum class Activation { silu };

// "silu"; nothing where there is no such activation.
std::optional<Activation> parse_activation(std::string_view name) noexcept;

// Arrays are row-major and do not overlap.
struct GatedActivationArgs {
  std::size_t num_tokens = 0;         // T
  std::size_t intermediate_size = 0;  // I
  Activation activation = Activation::silu;
  const float* gate_up = nullptr;  // [T, 2 * I]
  float* output = nullptr;         // [T, I]
};

void gated_activation(KernelLevel level, const GatedActivationArgs& args, const ParallelFor& parallel_for);

}  // namespace precast
