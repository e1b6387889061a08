#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "runtime/native/src/sampling/philox.h"
#include "runtime/native/src/sampling/sampler.h"
#include "tests/native/check.h"

using namespace precast;
using Words = std::array<std::uint32_t, 4>;

namespace {

SampledToken sample_row(const std::vector<float>& logits, const SamplingParams& params, std::size_t position) {
  const std::vector<std::int32_t> token_ids(position, 0);
  const SamplingRow row{.logits = logits, .params = &params, .token_ids = token_ids, .num_prompt_tokens = position};
  Sampler sampler;
  return std::move(sampler.sample({&row, 1}).front());
}

std::int32_t sample(const std::vector<float>& logits, const SamplingParams& params, std::size_t position = 5) {
  const SampledToken token = sample_row(logits, params, position);
  CHECK(!token.error.has_value());
  return token.token_id;
}

SamplingParams with(float temperature, std::int32_t top_k, float top_p, std::uint64_t seed) {
  SamplingParams params;
  params.temperature = temperature;
  params.top_k = top_k;
  params.top_p = top_p;
  params.seed = seed;
  return params;
}

/// How often each token is drawn over `count` seeds.
std::vector<double> frequencies(const std::vector<float>& logits, float temperature, std::int32_t top_k, float top_p,
                                int count) {
  std::vector<double> drawn(logits.size(), 0.0);
  for (int seed = 0; seed < count; ++seed) {
    drawn[static_cast<std::size_t>(sample(logits, with(temperature, top_k, top_p, static_cast<std::uint64_t>(seed))))] += 1.0;
  }
  for (double& frequency : drawn) frequency /= count;
  return drawn;
}

}  // namespace

TEST("Philox gives its authors' known answers") {
  CHECK((philox4x32({0, 0, 0, 0}, {0, 0}) == Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  constexpr std::uint32_t ones = 0xffffffff;
  CHECK((philox4x32({ones, ones, ones, ones}, {ones, ones}) == Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  CHECK((philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
         Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST("greedy takes the largest logit, the smallest id among equals") {
  CHECK_EQ(sample({1.0F, 3.0F, 2.0F, 3.0F}, with(0.0F, 0, 1.0F, 0)), 1);
  CHECK_EQ(sample({-INFINITY, -5.0F}, with(1e-6F, 0, 1.0F, 0)), 1);
}

TEST("a draw depends on seed and position, and on nothing else") {
  const std::vector<float> logits(100, 0.0F);
  const std::int32_t first = sample(logits, with(1.0F, 0, 1.0F, 1), 5);
  CHECK_EQ(sample(logits, with(1.0F, 0, 1.0F, 1), 5), first);
  int same_position = 0;
  int same_seed = 0;
  for (std::size_t i = 0; i < 50; ++i) {
    same_position += sample(logits, with(1.0F, 0, 1.0F, 2 + i), 5) == first;
    same_seed += sample(logits, with(1.0F, 0, 1.0F, 1), 6 + i) == first;
  }
  CHECK(same_position < 10);
  CHECK(same_seed < 10);
}

TEST("tokens are drawn as often as their probabilities say") {
  const std::vector<float> logits{0.0F, 1.0F, 2.0F, -1.0F};
  for (const float temperature : {0.5F, 1.0F, 2.0F}) {
    double total = 0.0;
    for (const float logit : logits) total += std::exp(static_cast<double>(logit / temperature));
    const std::vector<double> drawn = frequencies(logits, temperature, 0, 1.0F, 20000);
    for (std::size_t i = 0; i < logits.size(); ++i) {
      const double probability = std::exp(static_cast<double>(logits[i] / temperature)) / total;
      const double four_sigma = 4.0 * std::sqrt(probability * (1.0 - probability) / 20000.0);
      CHECK(std::abs(drawn[i] - probability) < four_sigma);
    }
  }
}

TEST("an unlikely token is not drawn because its noise is extreme") {
  // 30000 tokens of weight e^-20 beside one of weight 1: together 6e-5 of the probability.
  std::vector<float> logits(30000, -20.0F);
  logits[77] = 0.0F;
  int others = 0;
  for (std::uint64_t seed = 0; seed < 300; ++seed) others += sample(logits, with(1.0F, 0, 1.0F, seed)) != 77;
  CHECK(others <= 2);
}

TEST("top_k keeps the k largest, the smaller ids among equals") {
  const std::vector<double> drawn = frequencies({1.0F, 2.0F, 2.0F, 2.0F, 0.0F}, 1.0F, 2, 1.0F, 500);
  CHECK_EQ(drawn[0] + drawn[3] + drawn[4], 0.0);
  CHECK(drawn[1] > 0.3 && drawn[2] > 0.3);
  CHECK_EQ(sample({1.0F, 4.0F, 2.0F}, with(1.0F, 1, 1.0F, 9)), 1);
}

TEST("top_p keeps the fewest tokens that hold at least p") {
  // Probabilities 0.5, 0.25, 0.125, 0.125.
  const auto half = static_cast<float>(std::log(2.0));
  const std::vector<float> logits{0.0F, 2 * half, half, 0.0F};
  std::vector<double> drawn = frequencies(logits, 1.0F, 0, 0.49F, 200);
  CHECK_EQ(drawn[1], 1.0);
  drawn = frequencies(logits, 1.0F, 0, 0.7F, 500);
  CHECK_EQ(drawn[0] + drawn[3], 0.0);
  CHECK(drawn[2] > 0.2);
  drawn = frequencies(logits, 1.0F, 0, 0.8F, 500);
  CHECK(drawn[0] > 0.0);
  CHECK_EQ(drawn[3], 0.0);
}

TEST("top_p finds a nucleus of any size") {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  for (const std::size_t vocab_size : {3U, 64U, 65U, 1000U, 5000U}) {
    std::vector<float> logits(vocab_size);
    for (float& logit : logits) logit = normal(random);
    for (const float top_p : {0.01F, 0.5F, 0.99F}) {
      std::vector<float> sorted = logits;
      std::sort(sorted.rbegin(), sorted.rend());
      double total = 0.0;
      for (const float logit : sorted) total += std::exp(static_cast<double>(logit));
      double sum = 0.0;
      std::size_t kept = 0;
      while (kept < vocab_size && sum < static_cast<double>(top_p) * total) sum += std::exp(static_cast<double>(sorted[kept++]));
      const float threshold = sorted[std::min(kept, vocab_size - 1)];  // one further: rounding may move the border by one
      for (std::uint64_t seed = 0; seed < 20; ++seed) {
        CHECK(logits[static_cast<std::size_t>(sample(logits, with(1.0F, 0, top_p, seed)))] >= threshold);
      }
    }
  }
}

TEST("logits that are not numbers are an error and not a token") {
  constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<std::vector<float>> bad{{1.0F, nan}, {nan, 1.0F}, {INFINITY, 1.0F}, {-INFINITY, -INFINITY}};
  for (const auto& logits : bad) {
    for (const float temperature : {0.0F, 1.0F}) {
      CHECK(sample_row(logits, with(temperature, 0, 1.0F, 0), 1).error.has_value());
    }
  }
}
