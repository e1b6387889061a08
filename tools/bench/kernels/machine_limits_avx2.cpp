#include "plugins/cpu/avx2.h"
#include "tools/bench/kernels/machine_limits.h"

namespace precast::bench {
namespace {

constexpr std::size_t num_sums = 12;  // latency times throughput of any processor so far, and 4 registers to spare

}  // namespace

std::size_t sum_lines_avx2(const std::byte* lines, std::size_t count) {
  __m256i sums[4] = {};  // several, or the latency of an addition would be what is measured
  for (std::size_t i = 0; i + 2 <= count; i += 2) {
#pragma GCC unroll 4
    for (std::size_t j = 0; j < 4; ++j) {
      const auto* const half = reinterpret_cast<const __m256i*>(lines + i * 64 + j * 32);
      sums[j] = _mm256_add_epi64(sums[j], _mm256_load_si256(half));
    }
  }
  const __m256i total = _mm256_add_epi64(_mm256_add_epi64(sums[0], sums[1]), _mm256_add_epi64(sums[2], sums[3]));
  return static_cast<std::size_t>(_mm256_extract_epi64(total, 0) + _mm256_extract_epi64(total, 3));
}

float peak_fma_avx2(std::size_t repeats) {
  __m256 sums[num_sums];  // start from different numbers, or the compiler does the same work once
#pragma GCC unroll 12
  for (std::size_t j = 0; j < num_sums; ++j) sums[j] = _mm256_set1_ps(static_cast<float>(j));
  const __m256 x = _mm256_set1_ps(1e-3f);
  const __m256 w = _mm256_set1_ps(1.5f);
  for (std::size_t i = 0; i < 2 * repeats; ++i) {
#pragma GCC unroll 12
    for (std::size_t j = 0; j < num_sums; ++j) sums[j] = _mm256_fmadd_ps(x, w, sums[j]);
  }
  __m256 all = _mm256_setzero_ps();
  for (const __m256& sum : sums) all = _mm256_add_ps(all, sum);
  return _mm256_cvtss_f32(all);
}

}  // namespace precast::bench
