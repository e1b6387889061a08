#include "plugins/cpu/avx512.h"
#include "tools/bench/kernels/machine_limits.h"

namespace precast::bench {
namespace {

constexpr std::size_t num_sums = 24;  // more than latency times throughput of any processor so far

// Different numbers, or the compiler does the same work once.
void start(__m512 (&sums)[num_sums]) {
#pragma GCC unroll 24
  for (std::size_t j = 0; j < num_sums; ++j) sums[j] = _mm512_set1_ps(static_cast<float>(j));
}

float total(const __m512 (&sums)[num_sums]) {
  __m512 all = _mm512_setzero_ps();
  for (const __m512& sum : sums) all = _mm512_add_ps(all, sum);
  return _mm512_reduce_add_ps(all);
}

}  // namespace

std::size_t sum_lines_avx512(const std::byte* lines, std::size_t count) {
  __m512i sums[4] = {};  // several, or the latency of an addition would be what is measured
  for (std::size_t i = 0; i + 4 <= count; i += 4) {
#pragma GCC unroll 4
    for (std::size_t j = 0; j < 4; ++j) {
      sums[j] = _mm512_add_epi64(sums[j], _mm512_load_si512(lines + (i + j) * 64));
    }
  }
  const __m512i total = _mm512_add_epi64(_mm512_add_epi64(sums[0], sums[1]), _mm512_add_epi64(sums[2], sums[3]));
  return static_cast<std::size_t>(_mm512_reduce_add_epi64(total));
}

float peak_f32_avx512(std::size_t repeats) {
  __m512 sums[num_sums];
  start(sums);
  const __m512 x = _mm512_set1_ps(1e-3f);
  const __m512 w = _mm512_set1_ps(1.5f);
  for (std::size_t i = 0; i < repeats; ++i) {
#pragma GCC unroll 24
    for (std::size_t j = 0; j < num_sums; ++j) sums[j] = _mm512_fmadd_ps(x, w, sums[j]);
  }
  return total(sums);
}

float peak_bf16_avx512(std::size_t repeats) {
  __m512 sums[num_sums];
  start(sums);
  const auto x = reinterpret_cast<__m512bh>(_mm512_set1_epi32(0x3A833A83));
  const auto w = reinterpret_cast<__m512bh>(_mm512_set1_epi32(0x3FC03FC0));
  for (std::size_t i = 0; i < repeats; ++i) {
#pragma GCC unroll 24
    for (std::size_t j = 0; j < num_sums; ++j) sums[j] = _mm512_dpbf16_ps(sums[j], x, w);
  }
  return total(sums);
}

}  // namespace precast::bench
