// SPDX-License-Identifier: Apache-2.0
#include "plugins/rms_norm/cpu/rms_norm.h"

#include <algorithm>

#include "plugins/rms_norm/cpu/rms_norm_row.h"

namespace precast {
namespace {

// Below this many elements a task costs less than starting it on another thread.
constexpr std::size_t elements_per_task = 32 * 1024;

void run_rows(RmsNormRowKernel kernel, const RmsNormArgs& args, std::size_t begin, std::size_t end) noexcept {
  for (std::size_t t = begin; t < end; ++t) {
    const std::size_t first = t * args.hidden_size;
    kernel({.hidden_size = args.hidden_size,
            .epsilon = args.epsilon,
            .x = args.x + first,
            .weight = args.weight,
            .residual = args.residual == nullptr ? nullptr : args.residual + first,
            .y = args.y + first,
            .sum = args.sum == nullptr ? nullptr : args.sum + first});
  }
}

}  // namespace

RmsNormRowKernel rms_norm_row_kernel([[maybe_unused]] KernelLevel level) noexcept {
#ifdef PRECAST_X86
  if (level == KernelLevel::avx512) return rms_norm_row_avx512;
  if (level == KernelLevel::avx2) return rms_norm_row_avx2;
#endif
  return rms_norm_row_portable;
}

void rms_norm(KernelLevel level, const RmsNormArgs& args, const ParallelFor& parallel_for) {
  if (args.num_tokens == 0 || args.hidden_size == 0) return;
  const RmsNormRowKernel kernel = rms_norm_row_kernel(level);
  const std::size_t rows_per_task = std::max(elements_per_task, args.hidden_size) / args.hidden_size;
  if (args.num_tokens <= rows_per_task) {
    const FloatingPointScope scope;
    run_rows(kernel, args, 0, args.num_tokens);
    return;
  }
  parallel_for((args.num_tokens + rows_per_task - 1) / rows_per_task, [&](std::size_t task) {
    const std::size_t begin = task * rows_per_task;
    run_rows(kernel, args, begin, std::min(begin + rows_per_task, args.num_tokens));
  });
}

}  // namespace precast
