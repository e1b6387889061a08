#include "runtime/native/src/sampling/noise.h"

namespace precast {
namespace {

// log((1 + s) / (1 - s)) for |s| <= 0.1716: Taylor's series in fp64, so that bits do not depend on a C library.
double log_ratio(double s) noexcept {
  const double z = s * s;
  double sum = 1.0 / 21;
  for (const double odd : {19.0, 17.0, 15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0}) sum = sum * z + 1.0 / odd;
  return 2.0 * (s + s * (z * sum));
}

// log(x) of a normal x > 0, to about 1e-15.
double log64(double x) noexcept {
  constexpr std::uint64_t sqrt_half = 0x3FE6A09E667F3BCD;
  const auto bits = std::bit_cast<std::uint64_t>(x);
  const std::int64_t exponent = static_cast<std::int64_t>(bits - sqrt_half) >> 52;
  const auto m = std::bit_cast<double>(bits - (static_cast<std::uint64_t>(exponent) << 52));  // sqrt(1/2) .. sqrt(2)
  return static_cast<double>(exponent) * 0.69314718055994530942 + log_ratio((m - 1.0) / (m + 1.0));
}

}  // namespace

double uniform_noise(const NoiseKey& key, std::uint32_t id) noexcept {
  const std::array<std::uint32_t, 4> words = philox4x32(
      {id / 64 * 8 + id % 16 / 2, key.position, key.sequence, high_noise_domain}, key.philox_key());
  const std::uint32_t high = words[id / 16 % 4] >> (id % 2 * 16) & 0xFFFFU;
  const std::uint32_t low = philox4x32({id, key.position, key.sequence, low_noise_domain}, key.philox_key())[0];
  return (static_cast<double>(high) * 0x1p32 + static_cast<double>(low) + 0.5) * 0x1p-48;
}

double gumbel_noise(const NoiseKey& key, std::uint32_t id) noexcept {
  const double v = uniform_noise(key, id);
  // 1 - v is exact, but small v would lose their digits in a logarithm of it; there (1 + s) / (1 - s) = 1 / (1 - v).
  const double exponential = v < 0.25 ? log_ratio(v / (2.0 - v)) : -log64(1.0 - v);
  return -log64(exponential);
}

}  // namespace precast
