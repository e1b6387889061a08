// The sampler against its slow reference, its kernel levels against each other, and rows against their neighbours, on random
// worlds: odd vocabulary sizes, ties, masked tokens, huge logits, every parameter.
#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "runtime/native/src/concat.h"
#include "runtime/native/src/sampling/sampler.h"
#include "tests/native/check.h"
#include "tests/native/reference_sampler.h"

using namespace precast;

namespace {

/// A row that owns what SamplingRow refers to.
struct World {
  std::vector<float> logits;
  SamplingParams params;
  std::vector<std::int32_t> token_ids;
  std::size_t num_prompt_tokens = 0;
  std::uint32_t sequence = 0;

  SamplingRow row() const {
    return {.logits = logits,
            .params = &params,
            .token_ids = token_ids,
            .num_prompt_tokens = num_prompt_tokens,
            .sequence = sequence};
  }
};

class WorldMaker {
 public:
  explicit WorldMaker(unsigned seed) : random_(seed) {}

  World make() {
    constexpr std::size_t sizes[] = {1, 2, 3, 15, 16, 17, 63, 64, 65, 127, 128, 129, 255, 256, 257, 600, 1025, 4000};
    World world;
    fill_logits(world.logits, sizes[below(std::size(sizes))]);
    fill_tokens(world);
    fill_filters(world.params);
    fill_edits(world);
    world.sequence = static_cast<std::uint32_t>(below(3));
    return world;
  }

 private:
  std::size_t below(std::size_t n) { return std::uniform_int_distribution<std::size_t>(0, n - 1)(random_); }
  bool once_in(std::size_t n) { return below(n) == 0; }
  float between(float low, float high) { return std::uniform_real_distribution<float>(low, high)(random_); }
  template <typename T, std::size_t n>
  T one_of(const T (&choices)[n]) {
    return choices[below(n)];
  }

  void fill_logits(std::vector<float>& logits, std::size_t vocab_size) {
    const float spread = one_of({0.0F, 0.5F, 3.0F, 20.0F, 1e5F, 1e30F});
    const float shift = one_of({0.0F, 7.0F, -50.0F, 1e4F});
    const bool has_ties = once_in(3);
    const std::size_t masked_once_in = one_of<std::size_t>({2, 10, 1'000'000});
    std::normal_distribution<float> normal;
    logits.resize(vocab_size);
    for (float& logit : logits) {
      const float x = normal(random_);
      logit = shift + spread * (has_ties ? std::round(x) : x);
      if (once_in(masked_once_in)) logit = -std::numeric_limits<float>::infinity();
    }
    if (once_in(200)) logits[below(vocab_size)] = one_of({std::numeric_limits<float>::infinity(), NAN});
  }

  void fill_tokens(World& world) {
    world.token_ids.resize(below(40));
    for (std::int32_t& id : world.token_ids) id = any_token(world);
    world.num_prompt_tokens = below(world.token_ids.size() + 1);
  }

  std::int32_t any_token(const World& world) { return static_cast<std::int32_t>(below(world.logits.size())); }

  void fill_filters(SamplingParams& params) {
    params.seed = random_();
    params.temperature = one_of({0.0F, 1e-5F, 0.3F, 1.0F, 1.0F, 1.7F, 100.0F, 3e38F});
    if (once_in(3)) params.top_k = static_cast<std::int32_t>(1 + below(one_of<std::size_t>({3, 60, 5000})));
    if (once_in(2)) params.top_p = one_of({1e-6F, 0.1F, 0.5F, 0.9F, 0.999F});
    if (once_in(4)) params.min_p = one_of({1e-30F, 0.001F, 0.05F, 0.7F, 1.0F});
    params.num_logprobs = one_of({-1, -1, 0, 1, 5, 300});
  }

  void fill_edits(World& world) {
    SamplingParams& params = world.params;
    params.max_tokens = 100;
    if (once_in(4)) params.repetition_penalty = one_of({0.01F, 0.8F, 1.2F, 3.0F});
    if (once_in(4)) params.presence_penalty = between(-2, 2);
    if (once_in(4)) params.frequency_penalty = between(-2, 2);
    if (once_in(8)) {
      for (std::size_t n = 1 + below(30); n > 0; --n) params.allowed_token_ids.push_back(any_token(world));
    }
    if (once_in(4)) fill_bad_words(world);
    if (once_in(4)) params.min_tokens = static_cast<std::int32_t>(below(30));
    if (once_in(2)) params.eos_token_ids = {any_token(world), 1 << 20};
    if (once_in(2)) params.stop_token_ids = {any_token(world), any_token(world), -1};
    if (once_in(4)) {
      for (std::size_t n = 1 + below(5); n > 0; --n) params.logit_bias.push_back({any_token(world), between(-30, 30)});
    }
  }

  void fill_bad_words(World& world) {
    for (std::size_t n = 1 + below(4); n > 0; --n) {
      std::vector<std::int32_t> word(1 + below(4));
      for (std::int32_t& id : word) id = any_token(world);
      // Half of them do end what is there, which chance alone would hardly make.
      const std::size_t prefix = word.size() - 1;
      if (once_in(2) && prefix <= world.token_ids.size()) {
        std::copy(world.token_ids.end() - static_cast<std::ptrdiff_t>(prefix), world.token_ids.end(), word.begin());
      }
      world.params.bad_words.push_back(std::move(word));
    }
  }

  std::mt19937_64 random_;
};

std::string describe(const World& world) {
  const SamplingParams& p = world.params;
  return concat("vocabulary ", world.logits.size(), ", temperature ", p.temperature, ", top_k ", p.top_k, ", top_p ", p.top_p,
                ", min_p ", p.min_p, ", repetition ", p.repetition_penalty, ", presence ", p.presence_penalty,
                ", frequency ", p.frequency_penalty, ", seed ", p.seed, ", num_logprobs ", p.num_logprobs);
}

#define CHECK_IN(world, condition) \
  do { \
    if (!(condition)) test::fail(__FILE__, __LINE__, concat("CHECK(" #condition ") in ", describe(world))); \
  } while (false)

std::vector<KernelLevel> levels() {
  std::vector<KernelLevel> runnable;
  for (const KernelLevel level : {KernelLevel::portable, KernelLevel::avx2, KernelLevel::avx512}) {
    if (supports(level)) runnable.push_back(level);
  }
  return runnable;
}

void check_same_bits(const World& world, const SampledToken& a, const SampledToken& b) {
  CHECK_IN(world, a.token_id == b.token_id);
  CHECK_IN(world, a.error.has_value() == b.error.has_value());
  if (a.error) CHECK_EQ(std::string(a.error->what()), std::string(b.error->what()));
  CHECK_IN(world, a.logprobs.size() == b.logprobs.size());
  for (std::size_t i = 0; i < a.logprobs.size(); ++i) {
    CHECK_IN(world, a.logprobs[i].token_id == b.logprobs[i].token_id);
    CHECK_IN(world, a.logprobs[i].rank == b.logprobs[i].rank);
    CHECK_IN(world, std::bit_cast<std::uint32_t>(a.logprobs[i].logprob) == std::bit_cast<std::uint32_t>(b.logprobs[i].logprob));
  }
}

void check_logprobs(const World& world, const std::vector<TokenLogprob>& logprobs,
                    const std::vector<TokenLogprob>& reference) {
  CHECK_IN(world, logprobs.size() == reference.size());
  for (std::size_t i = 0; i < logprobs.size(); ++i) {
    CHECK_IN(world, logprobs[i].token_id == reference[i].token_id);
    CHECK_IN(world, logprobs[i].rank == reference[i].rank);
    const float error = std::abs(logprobs[i].logprob - reference[i].logprob);
    const bool both_masked = std::isinf(logprobs[i].logprob) && logprobs[i].logprob == reference[i].logprob;
    CHECK_IN(world, both_masked || error <= 2e-6F + 1e-6F * std::abs(reference[i].logprob));
  }
}

void check_against_reference(const World& world, const SampledToken& sampled) {
  const SampledToken reference = test::reference_sample(world.row());
  CHECK_IN(world, sampled.error.has_value() == reference.error.has_value());
  if (sampled.error) {
    CHECK_IN(world, sampled.error->code() == reference.error->code());
    return;
  }
  if (sampled.token_id != reference.token_id) {
    const bool is_on_border = sampled.token_id == test::reference_sample(world.row(), 1.0 - 1e-5).token_id ||
                              sampled.token_id == test::reference_sample(world.row(), 1.0 + 1e-5).token_id;
    CHECK_IN(world, world.params.top_p < 1.0F && is_on_border);
    return;  // logprobs begin with the sampled token
  }
  check_logprobs(world, sampled.logprobs, reference.logprobs);
}

}  // namespace

TEST("a sampled token is what the slow reference samples, at every kernel level") {
  WorldMaker maker(1);
  std::vector<Sampler> samplers;
  for (const KernelLevel level : levels()) samplers.emplace_back(level);
  for (int i = 0; i < 6000; ++i) {
    const World world = maker.make();
    const SamplingRow row = world.row();
    const SampledToken first = samplers.front().sample({&row, 1}).front();
    check_against_reference(world, first);
    for (Sampler& sampler : samplers) check_same_bits(world, first, sampler.sample({&row, 1}).front());
  }
}

TEST("a sampled token does not depend on the rows beside it") {
  WorldMaker maker(2);
  Sampler batched;
  for (int i = 0; i < 50; ++i) {
    std::vector<World> worlds(20);
    std::vector<SamplingRow> rows;
    for (World& world : worlds) {
      world = maker.make();
      rows.push_back(world.row());
    }
    const std::vector<SampledToken> together = batched.sample(rows);
    CHECK_EQ(together.size(), rows.size());
    for (std::size_t r = 0; r < rows.size(); ++r) {
      Sampler alone;
      check_same_bits(worlds[r], alone.sample({&rows[r], 1}).front(), together[r]);
    }
  }
}

TEST("a token that filters keep is drawn with them if it is drawn without them") {
  std::mt19937 random(4);
  std::normal_distribution<float> normal(0.0F, 2.0F);
  Sampler sampler;
  int kept = 0;
  for (std::uint64_t seed = 0; seed < 400; ++seed) {
    World world;
    world.logits.resize(700);
    for (float& logit : world.logits) logit = normal(random);
    world.params.seed = seed;
    const SamplingRow row = world.row();
    const std::int32_t unfiltered = sampler.sample({&row, 1}).front().token_id;
    for (const std::int32_t top_k : {5, 50, 300}) {
      std::vector<float> sorted = world.logits;
      std::sort(sorted.rbegin(), sorted.rend());
      const bool is_kept = world.logits[static_cast<std::size_t>(unfiltered)] >= sorted[static_cast<std::size_t>(top_k - 1)];
      world.params.top_k = top_k;
      const std::int32_t filtered = sampler.sample({&row, 1}).front().token_id;
      CHECK_IN(world, (filtered == unfiltered) == is_kept);
      kept += is_kept;
    }
  }
  CHECK(kept > 300 && kept < 1100);  // both cases were met
}
