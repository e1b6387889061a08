#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#include "runtime/native/src/sampling/log64.h"
#include "runtime/native/src/sampling/noise.h"
#include "tests/native/check.h"

using namespace precast;
using Words = std::array<std::uint32_t, 4>;

TEST("Philox gives its authors' known answers") {
  CHECK((philox4x32({0, 0, 0, 0}, {0, 0}) == Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  constexpr std::uint32_t ones = 0xffffffff;
  CHECK((philox4x32({ones, ones, ones, ones}, {ones, ones}) == Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  CHECK((philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
         Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

// The values come from a program of its own, written from noise.h.
TEST("noise is frozen: a seed gives the same tokens in every version") {
  const NoiseKey key{.seed = 0x0123456789ABCDEF, .sequence = 3, .position = 1000};
  CHECK_EQ(uniform_noise(key, 0), 0x1.e9a83162c382p-2);
  CHECK_EQ(uniform_noise(key, 77), 0x1.8d42c7ff50c7p-1);
  CHECK_EQ(uniform_noise(key, 149999), 0x1.2643aafc45cbp-1);
}

TEST("noise is uniform, and every part of the key changes it") {
  constexpr std::size_t count = 100'000;
  std::vector<double> values;
  for (std::uint32_t id = 0; id < count; ++id) values.push_back(uniform_noise({.seed = 5}, id));
  std::sort(values.begin(), values.end());
  double distance = 0.0;  // Kolmogorov and Smirnov's
  for (std::size_t i = 0; i < count; ++i) {
    distance = std::max(distance, std::abs(values[i] - (static_cast<double>(i) + 0.5) / count));
  }
  CHECK(distance < 2.2 / std::sqrt(static_cast<double>(count)));  // one in 10,000 lies above
  CHECK(values.front() > 0.0 && values.back() < 1.0);
  CHECK(std::adjacent_find(values.begin(), values.end()) == values.end());

  const NoiseKey key{.seed = 5, .sequence = 1, .position = 2};
  const double value = uniform_noise(key, 9);
  CHECK(value != uniform_noise({.seed = 6, .sequence = 1, .position = 2}, 9));
  CHECK(value != uniform_noise({.seed = 5 + (1ULL << 32), .sequence = 1, .position = 2}, 9));
  CHECK(value != uniform_noise({.seed = 5, .sequence = 2, .position = 1}, 9));
  CHECK(value != uniform_noise({.seed = 5, .sequence = 1, .position = 3}, 9));
  CHECK(value != uniform_noise(key, 10));
}

TEST("Gumbel noise is -log(-log(1 - v)), also where v is tiny or nearly 1") {
  double smallest = 0.0;
  double largest = 0.0;
  for (std::uint32_t id = 0; id < 300'000; ++id) {
    const NoiseKey key{.seed = 8};
    const double noise = gumbel_noise(key, id);
    const double expected = -std::log(-std::log1p(-uniform_noise(key, id)));
    CHECK(std::abs(noise - expected) <= 1e-14 * std::max(1.0, std::abs(expected)));
    smallest = std::min(smallest, noise);
    largest = std::max(largest, noise);
  }
  CHECK(smallest < -2.0 && largest > 11.0);
}

TEST("log64 is as exact as the C library's") {
  for (double x = 1e-300; x < 1e300; x *= 1.37) {
    CHECK(std::abs(log64(x) - std::log(x)) <= 5e-16 * std::max(std::abs(std::log(x)), 1e-3));
  }
  for (double x = 0.5; x < 2.0; x += 0.00037) {
    CHECK(std::abs(log64(x) - std::log(x)) <= 5e-16 * std::max(std::abs(std::log(x)), 0.1));
  }
  CHECK_EQ(log64(1.0), 0.0);
}
