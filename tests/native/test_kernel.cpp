// plugins/cpu: kernel levels, ParallelFor, floating-point environment, bf16, scratch memory.
#include "plugins/cpu/kernel.h"

#include <bit>
#include <cfenv>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "plugins/cpu/bf16.h"
#include "plugins/cpu/scratch.h"
#include "tests/native/check.h"
#include "tests/native/parallel.h"

#ifdef PRECAST_X86
#include <xmmintrin.h>
#endif

namespace precast {
namespace {

TEST("kernel level: names and levels agree, and an unknown name is nothing") {
  for (const KernelLevel level : all_kernel_levels) {
    CHECK(parse_kernel_level(name(level)) == level);
  }
  CHECK(!parse_kernel_level("").has_value());
  CHECK(!parse_kernel_level("AVX512").has_value());
  CHECK(!parse_kernel_level("avx512 ").has_value());
}

TEST("kernel level: the best one is supported, and portable always is") {
  CHECK(supports(KernelLevel::portable));
  CHECK(supports(best_kernel_level()));
}

constexpr ProcessorFeatures with_avx2{.avx2 = true, .fma = true, .f16c = true};

constexpr ProcessorFeatures with_everything() {
  ProcessorFeatures all = with_avx2;
  all.avx512f = all.avx512bw = all.avx512dq = all.avx512vl = all.avx512vnni = all.avx512bf16 = true;
  return all;
}

TEST("kernel level: the best one is the highest of which a processor lacks nothing") {
  CHECK(best_kernel_level(ProcessorFeatures{}) == KernelLevel::portable);
  CHECK(best_kernel_level(with_avx2) == KernelLevel::avx2);
  CHECK(best_kernel_level(with_everything()) == KernelLevel::avx512);
  CHECK(best_kernel_level({.avx2 = true, .fma = true}) == KernelLevel::portable);  // no F16C
  // Intel's Cascade Lake: AVX-512 and VNNI, no BF16.
  ProcessorFeatures cascade_lake = with_everything();
  cascade_lake.avx512bf16 = false;
  CHECK(best_kernel_level(cascade_lake) == KernelLevel::avx2);
  CHECK_EQ(missing_feature(KernelLevel::avx512, cascade_lake), "AVX512_BF16");
  CHECK_EQ(missing_feature(KernelLevel::avx2, cascade_lake), "");
  // A level needs what those before it need.
  ProcessorFeatures odd = with_everything();
  odd.fma = false;
  CHECK_EQ(missing_feature(KernelLevel::avx512, odd), "FMA");
}

TEST("kernel level: every single feature that is missing costs its level") {
  constexpr bool ProcessorFeatures::*features[] = {
      &ProcessorFeatures::avx2,     &ProcessorFeatures::fma,        &ProcessorFeatures::f16c,
      &ProcessorFeatures::avx512f,  &ProcessorFeatures::avx512bw,   &ProcessorFeatures::avx512dq,
      &ProcessorFeatures::avx512vl, &ProcessorFeatures::avx512vnni, &ProcessorFeatures::avx512bf16,
  };
  static_assert(sizeof(features) / sizeof(features[0]) == sizeof(ProcessorFeatures));
  for (std::size_t i = 0; i < sizeof(ProcessorFeatures); ++i) {
    ProcessorFeatures processor = with_everything();
    processor.*features[i] = false;
    CHECK(best_kernel_level(processor) == (i < 3 ? KernelLevel::portable : KernelLevel::avx2));
  }
}

TEST("parallel for: every task runs exactly once on every backend") {
  test::ThreadsForTests three(3);
  test::BackwardsForTests backwards(7);
  for (const ParallelFor& parallel_for : {ParallelFor::serial(), three.parallel_for(), backwards.parallel_for()}) {
    for (const std::size_t n : {0u, 1u, 2u, 100u}) {
      std::vector<int> runs(n, 0);
      parallel_for(n, [&](std::size_t i) { ++runs[i]; });
      CHECK(runs == std::vector<int>(n, 1));
    }
  }
  CHECK_EQ(ParallelFor::serial().threads(), 1u);
  CHECK_EQ(backwards.parallel_for().threads(), 7u);
}

TEST("floating-point scope: tasks round to nearest even, and the caller's rounding comes back") {
  std::fesetround(FE_UPWARD);
  volatile float one = 1.0f;
  volatile float half_step = std::ldexp(1.0f, -24);
  float inside = 0.0f;
  ParallelFor::serial()(1, [&](std::size_t) { inside = one + half_step; });
  const float after = one + half_step;
  const int rounding = std::fegetround();
  std::fesetround(FE_TONEAREST);
  CHECK_EQ(inside, 1.0f);
  CHECK_EQ(after, std::nextafter(1.0f, 2.0f));
  CHECK_EQ(rounding, FE_UPWARD);
}

#ifdef PRECAST_X86
TEST("floating-point scope: subnormals are kept though the host program flushes them") {
  const unsigned before = _mm_getcsr();
  _mm_setcsr(before | 0x8040u);  // FTZ and DAZ
  volatile float smallest_normal = std::numeric_limits<float>::min();
  volatile float half = 0.5f;
  float inside = 0.0f;
  ParallelFor::serial()(1, [&](std::size_t) { inside = smallest_normal * half; });
  const float outside = smallest_normal * half;
  const unsigned after = _mm_getcsr();
  _mm_setcsr(before);
  CHECK(inside > 0.0f);
  CHECK(outside == 0.0f);
  CHECK_EQ(after & 0x8040u, 0x8040u);
}
#endif

TEST("bf16: rounds to nearest, ties to even") {
  const auto rounded = [](std::uint32_t bits) { return std::uint32_t{round_to_bf16(std::bit_cast<float>(bits)).bits}; };
  CHECK_EQ(rounded(0x3F800000), 0x3F80u);
  CHECK_EQ(rounded(0x3F807FFF), 0x3F80u);
  CHECK_EQ(rounded(0x3F808000), 0x3F80u);  // tie, down to even
  CHECK_EQ(rounded(0x3F808001), 0x3F81u);
  CHECK_EQ(rounded(0x3F818000), 0x3F82u);  // tie, up to even
  CHECK_EQ(rounded(0x80000000), 0x8000u);  // -0
  CHECK_EQ(rounded(0x7F7FFFFF), 0x7F80u);  // the largest fp32 is beyond bf16's range
  CHECK_EQ(rounded(0xFF800000), 0xFF80u);
  CHECK_EQ(rounded(0x00000001), 0x0000u);
  CHECK_EQ(rounded(0x007F8000), 0x0080u);  // a subnormal tie, up to the smallest normal
  CHECK_EQ(rounded(0x7F800001), 0x7FC0u);  // a NaN never becomes infinity
  CHECK_EQ(rounded(0xFFFFFFFF), 0xFFFFu);
}

TEST("bf16: every value survives fp32 and back") {
  for (std::uint32_t bits = 0; bits <= 0xFFFF; ++bits) {
    const Bf16 value{static_cast<std::uint16_t>(bits)};
    const bool signalling = (bits & 0x7F80u) == 0x7F80u && (bits & 0x7Fu) != 0 && (bits & 0x40u) == 0;
    CHECK_EQ(round_to_bf16(to_float(value)).bits, signalling ? bits | 0x40u : bits);
  }
}

TEST("scratch: pieces are aligned, apart, and stay where they are") {
  Scratch scratch;
  scratch.reset();
  auto* const a = scratch.take<float>(3);
  auto* const b = scratch.take<std::uint8_t>(100'000);
  auto* const c = scratch.take<double>(0);
  CHECK(c != nullptr);
  for (std::size_t i = 0; i < 3; ++i) a[i] = 1.0f;
  for (std::size_t i = 0; i < 100'000; ++i) b[i] = 0xFF;
  for (std::size_t i = 0; i < 3; ++i) CHECK_EQ(a[i], 1.0f);
  CHECK_EQ(reinterpret_cast<std::uintptr_t>(a) % Scratch::alignment, 0u);
  CHECK_EQ(reinterpret_cast<std::uintptr_t>(b) % Scratch::alignment, 0u);
}

TEST("scratch: a repeated step asks for no more memory, and a smaller piece is given up for a larger") {
  Scratch scratch;
  for (int step = 0; step < 3; ++step) {
    scratch.reset();
    scratch.take<std::uint8_t>(1000);
    scratch.take<std::uint8_t>(5000);
  }
  const std::size_t settled = scratch.capacity_bytes();
  CHECK_EQ(settled, 1024u + 5056u);
  scratch.reset();
  const auto* const first = scratch.take<std::uint8_t>(1000);
  CHECK_EQ(scratch.take<std::uint8_t>(5000) - first, 1024);
  CHECK_EQ(scratch.capacity_bytes(), settled);
  scratch.reset();
  scratch.take<std::uint8_t>(100'032);
  CHECK_EQ(scratch.capacity_bytes(), 100'032u);
}

TEST("scratch: an impossible size is bad_alloc, not an overflow") {
  Scratch scratch;
  CHECK_THROWS(scratch.take<double>(static_cast<std::size_t>(-1) / 2));
}

}  // namespace
}  // namespace precast
