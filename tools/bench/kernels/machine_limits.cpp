#include "tools/bench/kernels/machine_limits.h"

#include <cstdint>

#include "tools/bench/stopwatch.h"

namespace precast::bench {
namespace {

std::size_t sum_lines_portable(const std::byte* lines, std::size_t count) {
  using Line = std::uint64_t __attribute__((vector_size(64)));
  Line sums[4] = {};  // several, or the latency of an addition would be what is measured
  for (std::size_t i = 0; i + 4 <= count; i += 4) {
    for (std::size_t j = 0; j < 4; ++j) sums[j] += reinterpret_cast<const Line*>(lines)[i + j];
  }
  const Line total = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  return total[0] + total[7];
}

// The widest loads there are: narrow ones did not reach the bandwidth of one core where it was tried. No software
// prefetch: the processor's own did better.
std::size_t sum_lines(const std::byte* lines, std::size_t count) {
#ifdef PRECAST_X86
  if (supports(KernelLevel::avx512)) return sum_lines_avx512(lines, count);
  if (supports(KernelLevel::avx2)) return sum_lines_avx2(lines, count);
#endif
  return sum_lines_portable(lines, count);
}

volatile float kept_float;  // results that are used are computed
volatile std::size_t kept_size;

}  // namespace

double read_bandwidth(const std::byte* memory, std::size_t size_bytes, const ParallelFor& parallel_for) {
  const std::size_t parts = parallel_for.threads() * 8;
  const std::size_t lines = size_bytes / 64 / parts;
  const Stopwatch stopwatch(parallel_for.threads() == 1);
  parallel_for(parts, [&](std::size_t i) { kept_size = sum_lines(memory + i * lines * 64, lines); });
  return static_cast<double>(parts * lines * 64) / stopwatch.seconds();
}

#ifdef PRECAST_X86
namespace {

// A loop that does 24 instructions `repeats` times, and the operations in one of them.
struct Peak {
  float (*loop)(std::size_t repeats);
  double flops;
};

Peak peak_of(KernelLevel level, WeightLayout layout) {
  if (level == KernelLevel::avx2) return {peak_fma_avx2, 8 * 2};  // bf16, too, is multiplied as fp32
  if (layout == WeightLayout::x16k1_f32) return {peak_f32_avx512, 16 * 2};
  return {peak_bf16_avx512, 16 * 4};
}

}  // namespace
#endif

double peak_flops([[maybe_unused]] KernelLevel level, [[maybe_unused]] WeightLayout layout,
                  [[maybe_unused]] const ParallelFor& parallel_for) {
#ifdef PRECAST_X86
  if (level != KernelLevel::portable) {
    constexpr std::size_t repeats = 50'000;
    const Peak peak = peak_of(level, layout);
    const std::size_t parts = parallel_for.threads() * 4;
    const Stopwatch stopwatch(parallel_for.threads() == 1);
    parallel_for(parts, [&](std::size_t) { kept_float = peak.loop(repeats); });
    return static_cast<double>(parts * repeats * 24) * peak.flops / stopwatch.seconds();
  }
#endif
  return 0.0;
}

}  // namespace precast::bench
