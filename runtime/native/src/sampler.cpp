#include "runtime/native/src/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "plugins/cpu/math.h"
#include "runtime/native/src/concat.h"
#include "runtime/native/src/philox.h"

namespace precast {
namespace {

// Below this a division by the temperature overflows for ordinary logits; the LLM APIs of the field call it greedy.
constexpr float min_temperature = 1e-5F;

struct Largest {
  float value = -std::numeric_limits<float>::infinity();
  std::int32_t id = -1;  // -1: nothing above minus infinity
  bool has_nan = false;
};

Largest find_largest(std::span<const float> logits) {
  Largest largest;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    largest.has_nan |= std::isnan(logits[i]);
    if (logits[i] > largest.value) largest = {logits[i], static_cast<std::int32_t>(i), largest.has_nan};
  }
  return largest;
}

}  // namespace

SampledToken Sampler::sample(std::span<const float> logits, const SamplingParams& params, std::size_t position) {
  const Largest largest = find_largest(logits);
  if (largest.has_nan || !std::isfinite(largest.value)) {
    return {-1, Error(ErrorCode::internal,
                      concat("the logits for position ", position, " hold ",
                             largest.has_nan ? "NaN" : "no finite largest value",
                             ": the weights or this prompt overflow; `precast verify` checks the engine's files"))};
  }
  if (params.temperature < min_temperature) return {largest.id, {}};

  kept_.resize(logits.size());
  for (std::size_t i = 0; i < logits.size(); ++i) {
    kept_[i] = {math::exp((logits[i] - largest.value) / params.temperature), static_cast<std::int32_t>(i)};
  }
  keep_top_k(static_cast<std::size_t>(params.top_k));
  keep_top_p(params.top_p);
  return {draw(params.seed, position), {}};
}

namespace {

constexpr auto more_likely = [](const auto& a, const auto& b) {
  return a.weight != b.weight ? a.weight > b.weight : a.id < b.id;
};

/// -log(1 - v) for v = (word + 0.5) / 2^32. Small values decide draws, so they need their relative precision: below 1/64 the
/// series is exact to fp32, where 1 - v would have lost v's last bits.
float standard_exponential(std::uint32_t word) {
  const double v = (static_cast<double>(word) + 0.5) * 0x1p-32;
  if (v >= 1.0 / 64) return -math::log(static_cast<float>(1.0 - v));
  const auto x = static_cast<float>(v);
  return x * (1.0F + x * (1.0F / 2 + x * (1.0F / 3 + x * (1.0F / 4))));
}

}  // namespace

void Sampler::keep_top_k(std::size_t top_k) {
  if (top_k == 0 || top_k >= kept_.size()) return;
  std::nth_element(kept_.begin(), kept_.begin() + static_cast<std::ptrdiff_t>(top_k - 1), kept_.end(), more_likely);
  kept_.resize(top_k);
}

void Sampler::keep_top_p(float top_p) {
  if (top_p >= 1.0F) return;
  // Summing in order of likelihood would need a whole sort: any fixed order will do, in double.
  double total = 0.0;
  for (const Candidate& candidate : kept_) total += static_cast<double>(candidate.weight);
  const double wanted = static_cast<double>(top_p) * total;
  // The nucleus is mostly small: sort a prefix, and a longer one only when that does not hold enough.
  double sum = 0.0;
  std::size_t num_sorted = 0;
  for (std::size_t prefix = std::min<std::size_t>(64, kept_.size()); num_sorted < kept_.size();
       prefix = std::min(kept_.size(), prefix * 4)) {
    const auto begin = kept_.begin() + static_cast<std::ptrdiff_t>(num_sorted);
    std::partial_sort(begin, kept_.begin() + static_cast<std::ptrdiff_t>(prefix), kept_.end(), more_likely);
    for (; num_sorted < prefix; ++num_sorted) {
      sum += static_cast<double>(kept_[num_sorted].weight);
      if (sum >= wanted) return kept_.resize(num_sorted + 1);
    }
  }
}

std::int32_t Sampler::draw(std::uint64_t seed, std::size_t position) const {
  const std::array<std::uint32_t, 2> key{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)};
  float best_score = -1.0F;
  std::int32_t best = -1;
  for (const Candidate& candidate : kept_) {
    if (candidate.weight == 0.0F) continue;  // underflow: it can not win
    const auto id = static_cast<std::uint32_t>(candidate.id);
    const std::uint32_t word = philox4x32({id / 4, static_cast<std::uint32_t>(position), 0, 0}, key)[id % 4];
    const float score = candidate.weight / standard_exponential(word);
    if (score > best_score || (score == best_score && candidate.id < best)) {
      best_score = score;
      best = candidate.id;
    }
  }
  return best;
}

}  // namespace precast
