// SPDX-License-Identifier: Apache-2.0
#include "plugins/gated_activation/cpu/gated_activation.h"

#include <algorithm>

#include "plugins/gated_activation/cpu/gated_activation_range.h"

namespace precast {
namespace {

// Below this many elements a task costs less than starting it on another thread.
constexpr std::size_t elements_per_task = 16 * 1024;

using RangeKernel = void (*)(const float*, const float*, float*, std::size_t) noexcept;

RangeKernel range_kernel([[maybe_unused]] KernelLevel level) noexcept {
#ifdef PRECAST_X86
  if (level == KernelLevel::avx512) return silu_range_avx512;
  if (level == KernelLevel::avx2) return silu_range_avx2;
#endif
  return silu_range_portable;
}

// Elements begin .. end - 1 of the output taken as one long row.
void run_elements(RangeKernel kernel, const GatedActivationArgs& args, std::size_t begin, std::size_t end) noexcept {
  const std::size_t width = args.intermediate_size;
  while (begin < end) {
    const std::size_t row = begin / width;
    const std::size_t column = begin % width;
    const std::size_t count = std::min(width - column, end - begin);
    const float* const gate = args.gate_up + row * 2 * width + column;
    kernel(gate, gate + width, args.output + begin, count);
    begin += count;
  }
}

}  // namespace

std::optional<Activation> parse_activation(std::string_view name) noexcept {
  if (name == "silu") return Activation::silu;
  return std::nullopt;
}

void gated_activation(KernelLevel level, const GatedActivationArgs& args, const ParallelFor& parallel_for) {
  const RangeKernel kernel = range_kernel(level);  // silu is the only activation of version 1
  const std::size_t num_elements = args.num_tokens * args.intermediate_size;
  if (num_elements <= elements_per_task) {
    const FloatingPointScope scope;
    run_elements(kernel, args, 0, num_elements);
    return;
  }
  parallel_for((num_elements + elements_per_task - 1) / elements_per_task, [&](std::size_t task) {
    const std::size_t begin = task * elements_per_task;
    run_elements(kernel, args, begin, std::min(begin + elements_per_task, num_elements));
  });
}

}  // namespace precast
