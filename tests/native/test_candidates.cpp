// Sampling from a row's most likely tokens gives what sampling from the whole row gives.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "runtime/native/src/concat.h"
#include "runtime/native/src/sampling/sampler.h"
#include "tests/native/candidates_of.h"
#include "tests/native/check.h"
#include "tests/native/failing_memory.h"

using namespace precast;
using namespace precast::test;

namespace {

constexpr float masked = -std::numeric_limits<float>::infinity();

/// A random row, and a request that candidates are enough for.
struct World {
  explicit World(unsigned seed) : random(seed) {
    const std::size_t vocab_size = one_of<std::size_t>({1, 2, 17, 255, 256, 257, 600, 4000});
    const float spread = one_of({0.0F, 0.3F, 3.0F, 20.0F, 1e30F});
    const float shift = one_of({0.0F, 7.0F, -50.0F});
    const bool has_ties = below(2) == 0;
    const std::size_t masked_once_in = one_of<std::size_t>({2, 1'000'000});
    std::normal_distribution<float> normal;
    logits.resize(vocab_size);
    for (float& logit : logits) {
      const float x = normal(random);
      logit = below(masked_once_in) == 0 ? masked : shift + spread * (has_ties ? std::round(2.0F * x) : x);
    }
    logits[below(vocab_size)] = shift;  // something is left
    params.seed = random();
    params.temperature = one_of({0.0F, 0.3F, 1.0F, 1.7F, 100.0F});
    params.top_k = static_cast<std::int32_t>(1 + below(std::min(vocab_size, one_of<std::size_t>({1, 5, 60, 4000}))));
    params.top_p = one_of({1.0F, 1.0F, 0.1F, 0.5F, 0.9F, 0.999F});
    params.min_p = one_of({0.0F, 0.0F, 0.001F, 0.05F, 0.7F});
    params.num_logprobs = std::min(one_of({-1, 0, 1, 5, 300}), static_cast<std::int32_t>(vocab_size));
    token_ids.resize(below(9), 0);
    sequence = static_cast<std::uint32_t>(below(3));
  }

  std::size_t below(std::size_t n) { return std::uniform_int_distribution<std::size_t>(0, n - 1)(random); }
  template <typename T, std::size_t n>
  T one_of(const T (&choices)[n]) {
    return choices[below(n)];
  }

  SamplingRow row() const { return {.logits = logits, .params = &params, .token_ids = token_ids, .sequence = sequence}; }

  /// As many as are needed, or more, up to all. Those that are kept are the smaller ids among equals, in any order.
  FoundCandidates candidates() {
    const auto needed = static_cast<std::size_t>(num_candidates_needed(params));
    FoundCandidates found = candidates_of(logits, needed + below(logits.size() - needed + 1));
    for (std::size_t begin = 0; begin < found.ids.size();) {
      std::size_t end = begin;
      while (end < found.ids.size() && found.logits[end] == found.logits[begin]) ++end;
      std::shuffle(found.ids.begin() + static_cast<std::ptrdiff_t>(begin),
                   found.ids.begin() + static_cast<std::ptrdiff_t>(end), random);
      begin = end;
    }
    return found;
  }

  std::string describe() const {
    return concat("vocabulary ", logits.size(), ", temperature ", params.temperature, ", top_k ", params.top_k, ", top_p ",
                  params.top_p, ", min_p ", params.min_p, ", seed ", params.seed, ", num_logprobs ", params.num_logprobs);
  }

  std::mt19937_64 random;
  std::vector<float> logits;
  SamplingParams params;
  std::vector<std::int32_t> token_ids;
  std::uint32_t sequence = 0;
};

#define CHECK_IN(world, condition) \
  do { \
    if (!(condition)) test::fail(__FILE__, __LINE__, concat("CHECK(" #condition ") in ", (world).describe())); \
  } while (false)

SampledToken sample(Sampler& sampler, SamplingRow row, const Candidates& candidates = {}) {
  row.candidates = candidates;
  if (!candidates.ids.empty()) row.logits = {};
  return std::move(sampler.sample({&row, 1}).front());
}

void check_same(const World& world, const SampledToken& from_row, const SampledToken& from_candidates) {
  CHECK_IN(world, !from_row.error && !from_candidates.error);
  CHECK_IN(world, from_row.token_id == from_candidates.token_id);
  CHECK_IN(world, from_row.logprobs.size() == from_candidates.logprobs.size());
  const double largest = static_cast<double>(*std::ranges::max_element(world.logits));
  for (std::size_t i = 0; i < from_row.logprobs.size(); ++i) {
    const TokenLogprob& a = from_row.logprobs[i];
    const TokenLogprob& b = from_candidates.logprobs[i];
    CHECK_IN(world, a.token_id == b.token_id && a.rank == b.rank);
    if (a.logprob == b.logprob) continue;  // both may be -infinity
    const double rounding = 1e-5 + 2e-7 * std::max(std::abs(largest), std::abs(static_cast<double>(a.logprob)));
    CHECK_IN(world, std::abs(static_cast<double>(a.logprob) - static_cast<double>(b.logprob)) <= rounding);
  }
}

std::vector<float> random_logits(unsigned seed, std::size_t count) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0F, 2.0F);
  std::vector<float> logits(count);
  for (float& logit : logits) logit = normal(random);
  return logits;
}

}  // namespace

TEST("candidates give the tokens, ranks and logprobs of whole rows, whatever the request asks for and whatever came before") {
  std::vector<Sampler> samplers;
  for (const KernelLevel level : {KernelLevel::portable, KernelLevel::avx2, KernelLevel::avx512}) {
    if (supports(level)) samplers.emplace_back(level);
  }
  int drawn_behind_the_first = 0;
  for (unsigned seed = 0; seed < 5000; ++seed) {
    World world(seed);
    Sampler fresh;
    const SampledToken expected = sample(fresh, world.row());
    const FoundCandidates candidates = world.candidates();
    for (Sampler& sampler : samplers) check_same(world, expected, sample(sampler, world.row(), candidates.view()));
    // A session that chooses too says nothing new.
    const std::int32_t chosen = candidates_of(world.logits, 1).ids.front();
    check_same(world, expected, sample(samplers.front(), world.row(), candidates.view(chosen)));
    drawn_behind_the_first += expected.token_id != chosen;
  }
  CHECK(drawn_behind_the_first > 800);  // the draws did not all take the most likely token
}

TEST("candidates and whole rows may stand side by side") {
  Sampler together;
  for (unsigned seed = 0; seed < 40; ++seed) {
    std::vector<World> worlds;
    std::vector<FoundCandidates> candidates;
    for (unsigned i = 0; i < 10; ++i) worlds.emplace_back(1000 * seed + i);
    for (World& world : worlds) candidates.push_back(world.candidates());
    std::vector<SamplingRow> rows;
    for (std::size_t i = 0; i < worlds.size(); ++i) {
      rows.push_back(worlds[i].row());
      if (i % 2 == 0) continue;
      rows.back().logits = {};
      rows.back().candidates = candidates[i].view();
    }
    const std::vector<SampledToken> sampled = together.sample(rows);
    for (std::size_t i = 0; i < worlds.size(); ++i) {
      Sampler alone;
      check_same(worlds[i], sample(alone, worlds[i].row()), sampled[i]);
    }
  }
}

TEST("how many candidates are enough") {
  SamplingParams params;
  const auto needed = [&params](float temperature, std::int32_t top_k, std::int32_t num_logprobs) {
    params.temperature = temperature;
    params.top_k = top_k;
    params.num_logprobs = num_logprobs;
    return num_candidates_needed(params);
  };
  CHECK_EQ(needed(0.0F, 0, -1), 1);
  CHECK_EQ(needed(0.0F, 50, -1), 1);  // greedy asks nothing of top_k
  CHECK_EQ(needed(0.0F, 0, 0), 1);
  CHECK_EQ(needed(0.0F, 0, 7), 7);
  CHECK_EQ(needed(1.0F, 50, -1), 50);
  CHECK_EQ(needed(1.0F, 50, 7), 50);
  CHECK_EQ(needed(1.0F, 5, 7), 7);
  CHECK_EQ(needed(1.0F, 0, 7), 0);  // the draw is among all
}

TEST("where logits tie at the edge of the candidates, the session says which of the equals is one") {
  const std::vector<float> logits(10, 2.0F);
  SamplingParams params;
  params.top_k = 3;
  params.num_logprobs = 1;
  Sampler sampler;
  const FoundCandidates last = candidates_of(logits, 3, std::greater<>());
  std::vector<int> drawn(10);
  for (params.seed = 0; params.seed < 100; ++params.seed) {
    const SampledToken token = sample(sampler, {.params = &params}, last.view());
    ++drawn[static_cast<std::size_t>(token.token_id)];
    CHECK(std::abs(token.logprobs.front().logprob + std::log(10.0F)) < 1e-5F);
    CHECK_EQ(token.logprobs.back().token_id, 7);
  }
  CHECK(drawn[7] > 10 && drawn[8] > 10 && drawn[9] > 10);
  CHECK_EQ(drawn[7] + drawn[8] + drawn[9], 100);
}

TEST("a session's choice is the greedy token also where it has no room among equal candidates") {
  const std::vector<float> logits{1.0F, 2.0F, 2.0F, 2.0F, 2.0F};
  SamplingParams params;
  params.temperature = 0.0F;
  params.num_logprobs = 2;
  Sampler sampler;
  const FoundCandidates last = candidates_of(logits, 2, std::greater<>());
  const SampledToken token = sample(sampler, {.params = &params}, last.view(1));
  CHECK_EQ(token.token_id, 1);
  CHECK_EQ(token.logprobs.size(), 3U);
  const std::int32_t ids[] = {1, 1, 3};
  const std::int32_t ranks[] = {1, 1, 2};
  for (std::size_t i = 0; i < 3; ++i) {
    CHECK_EQ(token.logprobs[i].token_id, ids[i]);
    CHECK_EQ(token.logprobs[i].rank, ranks[i]);
    CHECK_EQ(token.logprobs[i].logprob, token.logprobs[0].logprob);
  }
  CHECK_EQ(sample(sampler, {.params = &params}, last.view()).token_id, 3);
}

TEST("NaN or infinity in a row of candidates is that request's error, and says so") {
  SamplingParams params;
  params.top_k = 2;
  Sampler sampler;
  const std::vector<std::int32_t> position(4);
  const auto sample_with = [&](float largest, float log_sum) {
    FoundCandidates candidates = candidates_of(random_logits(1, 100), 2);
    candidates.ids = {-1, 1'000'000};  // nobody's any more
    candidates.logits.front() = largest;
    candidates.log_sum = log_sum;
    return sample(sampler, {.params = &params, .token_ids = position}, candidates.view());
  };
  constexpr float infinity = std::numeric_limits<float>::infinity();
  for (const auto& [largest, log_sum] : {std::pair(NAN, 1.0F), std::pair(1.0F, NAN), std::pair(infinity, infinity),
                                         std::pair(1.0F, infinity), std::pair(-infinity, -infinity)}) {
    const SampledToken token = sample_with(largest, log_sum);
    CHECK(token.error.has_value() && token.error->code() == ErrorCode::internal);
  }
  CHECK_EQ(std::string(sample_with(1.0F, NAN).error->what()),
           "of the logits for position 4 the largest is 1 and the log of the sum of exp(logit) nan: the weights or this prompt "
           "overflow; `precast verify` checks the engine's files");
}

TEST("a row that there was no memory for leaves nothing behind") {
  const std::vector<float> logits = random_logits(3, 1000);
  const std::vector<float> others = random_logits(4, 1000);
  SamplingParams params;
  params.top_k = 20;
  params.num_logprobs = 20;
  const FoundCandidates candidates = candidates_of(logits, 20);
  const FoundCandidates other = candidates_of(others, 20);
  Sampler fresh;
  const SampledToken expected = sample(fresh, {.params = &params}, other.view());
  std::size_t num_failed = 0;
  for (std::size_t num_left = 0; num_failed == num_left; ++num_left) {
    Sampler sampler;
    SamplingRow row{.params = &params, .candidates = candidates.view()};
    fail_allocations(num_left, Failing::once);
    try {
      static_cast<void>(sampler.sample({&row, 1}));
    } catch (const std::bad_alloc&) {
    }
    if (stop_failing()) ++num_failed;
    const SampledToken token = sample(sampler, {.params = &params}, other.view());
    CHECK_EQ(token.token_id, expected.token_id);
    for (std::size_t i = 0; i < expected.logprobs.size(); ++i) {
      CHECK_EQ(token.logprobs[i].token_id, expected.logprobs[i].token_id);
    }
  }
  CHECK(num_failed > 5);
}
