#pragma once

#include <bit>
#include <cstdint>

namespace precast {

/// log((1 + s) / (1 - s)) for |s| <= 0.1716: Taylor's series in fp64, so that bits do not depend on a C library.
inline double log_ratio(double s) noexcept {
  const double z = s * s;
  double sum = 1.0 / 21;
  for (const double odd : {19.0, 17.0, 15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0}) sum = sum * z + 1.0 / odd;
  return 2.0 * (s + s * (z * sum));
}

/// log(x) of a normal fp64 x > 0, to about 1e-15.
inline double log64(double x) noexcept {
  constexpr std::uint64_t sqrt_half = 0x3FE6A09E667F3BCD;
  const auto bits = std::bit_cast<std::uint64_t>(x);
  const std::int64_t exponent = static_cast<std::int64_t>(bits - sqrt_half) >> 52;
  const auto m = std::bit_cast<double>(bits - (static_cast<std::uint64_t>(exponent) << 52));  // sqrt(1/2) .. sqrt(2)
  return static_cast<double>(exponent) * 0.69314718055994530942 + log_ratio((m - 1.0) / (m + 1.0));
}

}  // namespace precast
