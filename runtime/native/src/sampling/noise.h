#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "runtime/native/src/sampling/philox.h"

namespace precast {

/// Where the noise of one draw comes from; token ids are the rest of the key.
struct NoiseKey {
  std::uint64_t seed = 0;
  std::uint32_t sequence = 0;
  std::uint32_t position = 0;  ///< of the token to be drawn: the number of tokens before it

  std::array<std::uint32_t, 2> philox_key() const noexcept {
    return {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)};
  }
};

/// The noise of token `id`: a number uniform in (0, 1), a pure function of (seed, sequence, position, id).
///
///     v = (high * 2^32 + low + 1/2) / 2^48
///
/// `high` has 16 bits and is shared work: one call of Philox serves eight tokens. It alone shows for nearly every token that
/// it cannot win a draw. Only the few others need `low`, which has a call for each token.
///
///     high   half id % 2 of word id / 16 % 4 of Philox(counter = (id / 64 * 8 + id % 16 / 2, position, sequence, 0))
///     low    word 0 of Philox(counter = (id, position, sequence, 1))
///
/// That order of ids makes 64 neighbours eight neighbouring counters, whose words come out of vector registers in the order
/// of the ids.
inline constexpr std::uint32_t high_noise_domain = 0;
inline constexpr std::uint32_t low_noise_domain = 1;

double uniform_noise(const NoiseKey& key, std::uint32_t id) noexcept;

/// -log(E), E = -log(1 - v) standard exponential: Gumbel's distribution. Adding it to logit / temperature and taking the
/// largest draws from softmax(logit / temperature). It is below 34; and below -log(v), since E > v.
double gumbel_noise(const NoiseKey& key, std::uint32_t id) noexcept;

}  // namespace precast
