// Numbers that ranks add up, for tests of collectives.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace precast::test {

// Numbers for which the order of a sum matters.
inline float number(std::size_t rank, std::size_t i, std::uint32_t seed) {
  std::uint64_t bits = (std::uint64_t{seed} << 40) + (rank << 32) + i;
  bits = (bits ^ (bits >> 31)) * 0x9e3779b97f4a7c15u;  // one step of a hash, so that neighbours differ
  bits = (bits ^ (bits >> 29)) * 0xbf58476d1ce4e5b9u;
  const float sign = (bits >> 63) == 0 ? 1.0f : -1.0f;
  const auto exponent = static_cast<int>((bits >> 40) % 40) - 20;
  return sign * std::ldexp(1.0f + static_cast<float>((bits >> 50) % 1024) / 1024.0f, exponent);
}

inline std::vector<float> numbers(std::size_t rank, std::size_t size, std::uint32_t seed) {
  std::vector<float> values(size);
  for (std::size_t i = 0; i < size; ++i) values[i] = number(rank, i, seed);
  return values;
}

inline std::vector<float> expected_sum(std::size_t num_ranks, std::size_t size, std::uint32_t seed) {
  std::vector<float> sum = numbers(0, size, seed);
  for (std::size_t rank = 1; rank < num_ranks; ++rank) {
    for (std::size_t i = 0; i < size; ++i) sum[i] += number(rank, i, seed);
  }
  return sum;
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

}  // namespace precast::test
