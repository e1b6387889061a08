#include "runtime/native/src/sampling/noise.h"

#include "runtime/native/src/sampling/log64.h"

namespace precast {
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
