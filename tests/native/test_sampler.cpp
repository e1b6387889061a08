#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "runtime/native/src/sampling/sampler.h"
#include "tests/native/check.h"

using namespace precast;

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

// ------------------------------------------------------------------------------------------------- every step, by itself

namespace {

constexpr float masked = -std::numeric_limits<float>::infinity();

/// Greedy over these logits after a prompt of {0, 1} and this output.
SampledToken greedy(const std::vector<float>& logits, SamplingParams params, const std::vector<std::int32_t>& output = {}) {
  std::vector<std::int32_t> token_ids{0, 1};
  token_ids.insert(token_ids.end(), output.begin(), output.end());
  params.temperature = 0.0F;
  const SamplingRow row{.logits = logits, .params = &params, .token_ids = token_ids, .num_prompt_tokens = 2};
  Sampler sampler;
  return std::move(sampler.sample({&row, 1}).front());
}

}  // namespace

TEST("min_p keeps tokens of at least that share of the largest probability, after temperature") {
  const auto ln2 = static_cast<float>(std::log(2.0));
  const std::vector<float> logits{0.0F, -ln2, -2 * ln2, -3 * ln2};  // shares 1, 1/2, 1/4, 1/8
  SamplingParams params;
  const auto kept = [&](float temperature, float min_p) {
    params.temperature = temperature;
    params.min_p = min_p;
    std::int32_t largest = 0;
    for (params.seed = 0; params.seed < 300; ++params.seed) largest = std::max(largest, sample(logits, params));
    return largest + 1;
  };
  CHECK_EQ(kept(1.0F, 0.1F), 4);
  CHECK_EQ(kept(1.0F, 0.2F), 3);
  CHECK_EQ(kept(1.0F, 0.3F), 2);
  CHECK_EQ(kept(1.0F, 1.0F), 1);
  CHECK_EQ(kept(2.0F, 0.3F), 4);  // shares 1, .71, .5, .35
  CHECK_EQ(kept(0.5F, 0.2F), 2);  // shares 1, 1/4, 1/16, 1/64
}

TEST("top_p counts what min_p and top_k have kept") {
  // Probabilities 1/2, 1/4, 1/8, 1/8. Of the first two, the first holds two thirds.
  const auto ln2 = static_cast<float>(std::log(2.0));
  const std::vector<float> logits{2 * ln2, ln2, 0.0F, 0.0F};
  CHECK_EQ(frequencies(logits, 1.0F, 2, 0.6F, 300)[1], 0.0);
  CHECK(frequencies(logits, 1.0F, 2, 0.7F, 300)[1] > 0.2);
  CHECK(frequencies(logits, 1.0F, 0, 0.6F, 300)[1] > 0.2);
}

TEST("only allowed ids are sampled") {
  SamplingParams params;
  params.allowed_token_ids = {2, 0, 2};
  CHECK_EQ(greedy({1.0F, 9.0F, 3.0F, 8.0F}, params).token_id, 2);
}

TEST("a bad word of one token never comes, the end of a longer one not after its beginning") {
  SamplingParams params;
  params.bad_words = {{3}, {2, 4, 1}};
  const std::vector<float> logits{1.0F, 5.0F, 2.0F, 9.0F, 3.0F};
  CHECK_EQ(greedy(logits, params).token_id, 1);
  CHECK_EQ(greedy(logits, params, {4}).token_id, 1);
  CHECK_EQ(greedy(logits, params, {2, 4}).token_id, 4);
  CHECK_EQ(greedy(logits, params, {2, 4, 0}).token_id, 1);
}

TEST("the prompt is no beginning of a bad word") {
  SamplingParams params;
  params.bad_words = {{0, 1, 3}, {1, 2, 3}};
  CHECK_EQ(greedy({0.0F, 0.0F, 0.0F, 9.0F}, params).token_id, 3);
  CHECK_EQ(greedy({0.0F, 0.0F, 0.0F, 9.0F}, params, {2}).token_id, 3);
}

TEST("below min_tokens no eos and no stop id comes") {
  SamplingParams params;
  params.min_tokens = 2;
  params.eos_token_ids = {1, 1 << 20};
  params.stop_token_ids = {3, -1};
  const std::vector<float> logits{1.0F, 5.0F, 2.0F, 4.0F};
  CHECK_EQ(greedy(logits, params).token_id, 2);
  CHECK_EQ(greedy(logits, params, {2}).token_id, 2);
  CHECK_EQ(greedy(logits, params, {2, 2}).token_id, 1);
}

TEST("logit bias is added, twice where an id stands twice, and unmasks nothing") {
  SamplingParams params;
  params.logit_bias = {{0, 2.0F}, {0, 2.5F}, {2, 100.0F}};
  params.bad_words = {{2}};
  CHECK_EQ(greedy({1.0F, 5.0F, 0.0F}, params).token_id, 0);  // 5.5
  params.logit_bias.erase(params.logit_bias.begin());
  CHECK_EQ(greedy({1.0F, 5.0F, 0.0F}, params).token_id, 1);
}

TEST("the repetition penalty divides positive and multiplies negative logits of prompt and output, once") {
  SamplingParams params;
  params.repetition_penalty = 2.0F;
  CHECK_EQ(greedy({6.0F, 6.0F, 3.5F}, params).token_id, 2);             // the prompt holds 0 and 1: 3, 3, 3.5
  CHECK_EQ(greedy({6.0F, 6.0F, 3.5F}, params, {2, 2}).token_id, 0);     // 3, 3, 1.75
  CHECK_EQ(greedy({-3.0F, -3.0F, -5.0F}, params).token_id, 2);          // -6, -6, -5
  CHECK_EQ(greedy({-4.0F, -1.0F, -5.0F}, params, {1, 1, 1}).token_id, 1);  // -8, -2, -5
}

TEST("presence and frequency penalties count the output only") {
  SamplingParams params;
  params.presence_penalty = 1.0F;
  CHECK_EQ(greedy({5.0F, 4.5F, 4.2F}, params).token_id, 0);  // the prompt counts for nothing
  CHECK_EQ(greedy({5.0F, 4.5F, 4.2F}, params, {0, 0, 0}).token_id, 1);        // 4, 4.5, 4.2
  params.presence_penalty = 0.0F;
  params.frequency_penalty = 0.25F;
  CHECK_EQ(greedy({5.0F, 4.5F, 4.2F}, params, {0}).token_id, 0);              // 4.75
  CHECK_EQ(greedy({5.0F, 4.5F, 4.2F}, params, {0, 0, 0}).token_id, 1);        // 4.25, 4.5
  CHECK_EQ(greedy({5.0F, 4.5F, 4.2F}, params, {0, 0, 0, 1, 1}).token_id, 0);  // 4.25, 4, 4.2
  params.frequency_penalty = -1.0F;
  CHECK_EQ(greedy({5.0F, 4.5F, 4.2F}, params, {2}).token_id, 2);
}

TEST("a row in which everything is masked is that request's error, and says so") {
  SamplingParams params;
  params.allowed_token_ids = {1};
  params.bad_words = {{1}};
  const SampledToken token = greedy({1.0F, 2.0F}, params);
  CHECK(token.error.has_value());
  CHECK(token.error->code() == ErrorCode::invalid_argument);
  CHECK(std::string(token.error->what()).find("have masked all 2 of them") != std::string::npos);
}

TEST("logprobs are of the raw logits: the sampled token, then the most likely, with ranks") {
  SamplingParams params;
  params.num_logprobs = 2;
  params.bad_words = {{1}};
  // Probabilities 1/2, 1/4, 1/4 for ids 1, 0, 3.
  const auto ln2 = static_cast<float>(std::log(2.0));
  const SampledToken token = greedy({0.0F, ln2, masked, 0.0F}, params);
  CHECK_EQ(token.token_id, 0);
  CHECK_EQ(token.logprobs.size(), std::size_t{3});
  const std::int32_t ids[] = {0, 1, 0};
  const std::int32_t ranks[] = {2, 1, 2};
  const float logprobs[] = {-2 * ln2, -ln2, -2 * ln2};
  for (std::size_t i = 0; i < 3; ++i) {
    CHECK_EQ(token.logprobs[i].token_id, ids[i]);
    CHECK_EQ(token.logprobs[i].rank, ranks[i]);
    CHECK(std::abs(token.logprobs[i].logprob - logprobs[i]) < 1e-6F);
  }
  params.num_logprobs = 0;
  CHECK_EQ(greedy({0.0F, ln2, masked, 0.0F}, params).logprobs.size(), std::size_t{1});
  params.num_logprobs = 50;  // more than there are
  CHECK_EQ(greedy({0.0F, ln2, masked, 0.0F}, params).logprobs.size(), std::size_t{5});
  CHECK_EQ(greedy({0.0F, ln2, masked, 0.0F}, params).logprobs.back().logprob, masked);
}

TEST("sequences of one seed draw differently") {
  const std::vector<float> logits(1000, 0.0F);
  const SamplingParams params = with(1.0F, 0, 1.0F, 3);
  std::vector<SamplingRow> rows(20, {.logits = logits, .params = &params});
  for (std::uint32_t i = 0; i < rows.size(); ++i) rows[i].sequence = i;
  Sampler sampler;
  const std::vector<SampledToken> tokens = sampler.sample(rows);
  int same = 0;
  for (const SampledToken& token : tokens) same += token.token_id == tokens.front().token_id;
  CHECK(same < 3);
}

TEST("draws over a large vocabulary follow softmax: chi-square") {
  std::mt19937 random(11);
  std::normal_distribution<float> normal(0.0F, 1.5F);
  std::vector<float> logits(3000);
  for (float& logit : logits) logit = normal(random);
  double total = 0.0;
  for (const float logit : logits) total += std::exp(static_cast<double>(logit));
  // Neighbours share a cell until it is expected to be drawn some 300 times.
  constexpr int num_draws = 30000;
  std::vector<std::size_t> cells;
  std::vector<double> expected{0.0};
  for (const float logit : logits) {
    if (expected.back() >= 300.0) expected.push_back(0.0);
    cells.push_back(expected.size() - 1);
    expected.back() += std::exp(static_cast<double>(logit)) / total * num_draws;
  }
  std::vector<double> drawn(expected.size(), 0.0);
  Sampler sampler;
  SamplingParams params;
  const SamplingRow row{.logits = logits, .params = &params};
  for (params.seed = 0; params.seed < num_draws; ++params.seed) {
    drawn[cells[static_cast<std::size_t>(sampler.sample({&row, 1}).front().token_id)]] += 1.0;
  }
  double chi_square = 0.0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    chi_square += (drawn[i] - expected[i]) * (drawn[i] - expected[i]) / expected[i];
  }
  // Its mean is the degrees of freedom, its variance twice that: one in 10,000 lies farther than four sigma above.
  const auto degrees = static_cast<double>(expected.size() - 1);
  CHECK(degrees > 60.0);
  CHECK(std::abs(chi_square - degrees) < 4.0 * std::sqrt(2.0 * degrees));
}
