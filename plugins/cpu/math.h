// SPDX-License-Identifier: Apache-2.0
// Elementary functions in fp32, the same bits on every machine and with every C library.
//
// Standard C++ without branches, so that a loop over one of them becomes vector code. math_avx2.h and math_avx512.h
// have those that kernels of these levels need. Polynomials are minimax fits (Remez) made for this file. "ulp": units in
// the last place of the exact result. Functions are static for the reason given in bf16.h.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>

namespace precast::math {

// Adding and subtracting 1.5 * 2^23 rounds an fp32 of at most 2^22 to the nearest integer, which meanwhile stands in
// the sum's low bits. 1.5 * 2^52 does the same for fp64.
inline constexpr float rounder32 = 12582912.0f;
inline constexpr double rounder64 = 6755399441055744.0;

// ln 2 in two parts: the first has 10 bits, so a multiple of it by a small integer is exact.
inline constexpr float ln2_high = 0.693359375f;
inline constexpr float ln2_low = -2.12194440e-4f;

// exp(x), below 2 ulp. exp(0) is 1, below about -103.97 it is 0, above about 88.73 infinity; NaN stays NaN.
[[maybe_unused]] static inline float exp(float x) noexcept {
  x = x < -104.0f ? -104.0f : x;
  x = x > 89.0f ? 89.0f : x;
  const float shifted = x * 1.44269504f + rounder32;
  const float n = shifted - rounder32;
  const float r = (x - n * ln2_high) - n * ln2_low;  // exp(x) = 2^n * exp(r), |r| <= ln(2) / 2
  float q = 0.00138145988f;
  q = q * r + 0.00836871658f;
  q = q * r + 0.041668389f;
  q = q * r + 0.166665211f;
  q = q * r + 0.49999994f;
  const float y = (r * r * q + r) + 1.0f;
  // 2^n alone may not be an fp32 (n is -150 .. 128): two factors, and only the last product rounds.
  const auto k =
      static_cast<std::int32_t>(std::bit_cast<std::uint32_t>(shifted) - std::bit_cast<std::uint32_t>(rounder32));
  const std::int32_t half = k >> 1;
  const auto power_of_two = [](std::int32_t e) {
    return std::bit_cast<float>((static_cast<std::uint32_t>(e) + 127u) << 23);
  };
  return y * power_of_two(half) * power_of_two(k - half);
}

// log(x), below 2 ulp. log(0) is -infinity, log of a negative number or NaN is NaN, log(infinity) is infinity.
[[maybe_unused]] static inline float log(float x) noexcept {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  constexpr std::uint32_t sqrt_half = 0x3F3504F3u;
  const bool is_subnormal = x < std::numeric_limits<float>::min();
  const auto bits = std::bit_cast<std::uint32_t>(is_subnormal ? x * 8388608.0f : x);
  const std::int32_t k = static_cast<std::int32_t>(bits - sqrt_half) >> 23;
  const float m = std::bit_cast<float>(bits - (static_cast<std::uint32_t>(k) << 23));
  const float n = static_cast<float>(is_subnormal ? k - 23 : k);
  const float f = m - 1.0f;  // x = 2^n * (1 + f), sqrt(1/2) <= 1 + f < sqrt(2)
  float q = -0.0763448253f;
  q = q * f + 0.127619594f;
  q = q * f - 0.131603643f;
  q = q * f + 0.142017201f;
  q = q * f - 0.166233361f;
  q = q * f + 0.200012282f;
  q = q * f - 0.250008225f;
  q = q * f + 0.333333313f;
  const float square = f * f;
  const float small = (square * f * q + n * ln2_low) - 0.5f * square;
  const float y = (f + small) + n * ln2_high;
  const float outside = x == 0.0f ? -infinity : std::numeric_limits<float>::quiet_NaN();
  return x > 0.0f ? (x < infinity ? y : x) : outside;
}

struct SinCos {
  float sin;
  float cos;
};

// sin(x) and cos(x), each within 2e-7 of the exact value for |x| up to 2^30. Infinities and NaN give NaN.
[[maybe_unused]] static inline SinCos sin_cos(float x) noexcept {
  // In fp64 one multiple of pi/2, rounded, is off by at most 2e-16 * |x|: no longer reduction is needed.
  const double shifted = static_cast<double>(x) * 0.63661977236758134308 + rounder64;
  const double n = shifted - rounder64;
  const auto r = static_cast<float>(static_cast<double>(x) - n * 1.57079632679489661923);
  const float z = r * r;
  const float sin_r = ((-0.000194955675f * z + 0.00833197776f) * z - 0.166666508f) * z * r + r;
  const float cos_r = ((2.44383791e-05f * z - 0.00138873665f) * z + 0.0416666456f) * z * z + (1.0f - 0.5f * z);
  const auto quadrant = static_cast<std::uint32_t>(std::bit_cast<std::uint64_t>(shifted));
  const bool swapped = (quadrant & 1u) != 0;
  const std::uint32_t sin_sign = (quadrant & 2u) << 30;
  const std::uint32_t cos_sign = ((quadrant + 1u) & 2u) << 30;
  const auto with_sign = [](float value, std::uint32_t sign) {
    return std::bit_cast<float>(std::bit_cast<std::uint32_t>(value) ^ sign);
  };
  return {with_sign(swapped ? cos_r : sin_r, sin_sign), with_sign(swapped ? sin_r : cos_r, cos_sign)};
}

// x * sigmoid(x), also called swish.
[[maybe_unused]] static inline float silu(float x) noexcept { return x / (1.0f + exp(-x)); }

}  // namespace precast::math
