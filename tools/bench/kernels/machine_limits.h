// What this machine can do at this moment: the floors and ceilings that kernels are held against.
#pragma once

#include <cstddef>

#include "plugins/cpu/kernel.h"
#include "plugins/cpu/weight_layout.h"

namespace precast::bench {

// Bytes a second that all threads together read from a buffer larger than any cache.
double read_bandwidth(const std::byte* memory, std::size_t size_bytes, const ParallelFor& parallel_for);

// Floating-point operations a second, all threads together, of the instruction that multiplies matrices in this layout;
// 0 where the level has none worth the name (portable).
double peak_flops(KernelLevel level, WeightLayout layout, const ParallelFor& parallel_for);

// The loops behind them. `sum_*` read lines of 64 bytes, `peak_*` do 24 instructions, 12 or more of
// them independent, `repeats` times.
std::size_t sum_lines_avx512(const std::byte* lines, std::size_t count);
std::size_t sum_lines_avx2(const std::byte* lines, std::size_t count);
float peak_fma_avx2(std::size_t repeats);
float peak_f32_avx512(std::size_t repeats);
float peak_bf16_avx512(std::size_t repeats);

}  // namespace precast::bench
