// plugins/cpu/math.h: accuracy over the whole range against fp64, edges, and that vector code gives the scalar's bits.
#include "plugins/cpu/math.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "tests/native/check.h"

namespace precast {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

// Every stride-th fp32 there is, of both signs, subnormals included.
template <typename F>
void for_many_floats(std::uint64_t stride, const F& f) {
  for (std::uint64_t bits = 0; bits < (std::uint64_t{1} << 32); bits += stride) {
    const float x = std::bit_cast<float>(static_cast<std::uint32_t>(bits));
    if (std::isfinite(x)) f(x);
  }
}

double error_in_ulp(float got, double exact) {
  int exponent = 0;
  std::frexp(exact, &exponent);
  return std::fabs(static_cast<double>(got) - exact) / std::ldexp(1.0, std::max(exponent - 24, -149));
}

TEST("math: exp is within 2 ulp wherever its result is a number above 0") {
  double worst = 0.0;
  for_many_floats(4099, [&](float x) {
    if (x > -103.9f && x < 88.7f) worst = std::max(worst, error_in_ulp(math::exp(x), std::exp(static_cast<double>(x))));
  });
  CHECK(worst < 2.0);
}

TEST("math: exp is exact at its edges") {
  CHECK_EQ(math::exp(0.0f), 1.0f);
  CHECK_EQ(math::exp(-0.0f), 1.0f);
  CHECK_EQ(math::exp(-104.0f), 0.0f);
  CHECK_EQ(math::exp(-infinity), 0.0f);
  CHECK_EQ(math::exp(89.0f), infinity);
  CHECK_EQ(math::exp(infinity), infinity);
  CHECK(std::isnan(math::exp(not_a_number)));
}

TEST("math: exp never falls as its argument grows") {
  float previous = 0.0f;
  for (int i = -110'000; i < 90'000; ++i) {
    const float y = math::exp(static_cast<float>(i) * 1e-3f);
    CHECK(y >= previous);
    previous = y;
  }
}

TEST("math: log is within 2 ulp for all positive numbers") {
  double worst = 0.0;
  for_many_floats(4099, [&](float x) {
    if (x > 0.0f) worst = std::max(worst, error_in_ulp(math::log(x), std::log(static_cast<double>(x))));
  });
  for (int i = -100'000; i < 100'000; ++i) {  // near 1, where the result is small
    const float x = 1.0f + static_cast<float>(i) * 1e-6f;
    if (x != 1.0f) worst = std::max(worst, error_in_ulp(math::log(x), std::log(static_cast<double>(x))));
  }
  CHECK(worst < 2.0);
}

TEST("math: log is exact at its edges") {
  CHECK_EQ(math::log(1.0f), 0.0f);
  CHECK_EQ(math::log(0.0f), -infinity);
  CHECK_EQ(math::log(-0.0f), -infinity);
  CHECK_EQ(math::log(infinity), infinity);
  CHECK(std::isnan(math::log(-1.0f)));
  CHECK(std::isnan(math::log(-infinity)));
  CHECK(std::isnan(math::log(not_a_number)));
}

TEST("math: sin and cos are within 2e-7 up to 2^30") {
  double worst = 0.0;
  const auto measure = [&](float x) {
    const math::SinCos got = math::sin_cos(x);
    worst = std::max(worst, std::fabs(static_cast<double>(got.sin) - std::sin(static_cast<double>(x))));
    worst = std::max(worst, std::fabs(static_cast<double>(got.cos) - std::cos(static_cast<double>(x))));
  };
  for_many_floats(16'411, [&](float x) {
    if (std::fabs(x) <= 1073741824.0f) measure(x);
  });
  for (int position = 0; position < 1'100'000; position += 7) measure(static_cast<float>(position));
  CHECK(worst < 2e-7);
}

TEST("math: sin and cos of 0 are exact, of infinity and NaN they are NaN") {
  CHECK_EQ(math::sin_cos(0.0f).sin, 0.0f);
  CHECK_EQ(math::sin_cos(0.0f).cos, 1.0f);
  for (const float x : {infinity, -infinity, not_a_number}) {
    CHECK(std::isnan(math::sin_cos(x).sin));
    CHECK(std::isnan(math::sin_cos(x).cos));
  }
}

TEST("math: silu is within 4 ulp of x / (1 + exp(-x)) where that is no subnormal") {
  double worst = 0.0;
  for_many_floats(4099, [&](float x) {
    const double exact = static_cast<double>(x) / (1.0 + std::exp(-static_cast<double>(x)));
    if (x > -80.0f && std::fabs(x) > 1e-30f) worst = std::max(worst, error_in_ulp(math::silu(x), exact));
  });
  CHECK(worst < 4.0);
  CHECK_EQ(math::silu(0.0f), 0.0f);
  CHECK_EQ(math::silu(-1e30f), 0.0f);
  CHECK_EQ(math::silu(1e30f), 1e30f);
}

TEST("math: a loop gives the same bits as one call, wherever an element stands") {
  std::vector<float> x;
  for_many_floats(1'000'003, [&](float value) { x.push_back(value); });
  std::vector<float> in_loop(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) in_loop[i] = math::exp(x[i]);
  for (std::size_t i = 0; i < x.size(); ++i) {
    volatile float alone = x[i];  // keeps the compiler from making this a vector too
    CHECK_EQ(std::bit_cast<std::uint32_t>(in_loop[i]), std::bit_cast<std::uint32_t>(math::exp(alone)));
  }
}

}  // namespace
}  // namespace precast
