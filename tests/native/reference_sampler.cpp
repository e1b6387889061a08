#include "tests/native/reference_sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <set>

#include "runtime/native/src/sampling/noise.h"

namespace precast::test {
namespace {

constexpr float masked = -std::numeric_limits<float>::infinity();

std::vector<std::int32_t> by_likelihood(std::span<const float> logits) {
  std::vector<std::int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    return logits[static_cast<std::size_t>(a)] > logits[static_cast<std::size_t>(b)];
  });
  return order;
}

void edit_before_processor(const SamplingRow& row, std::vector<float>& logits) {
  const SamplingParams& params = *row.params;
  const auto mask = [&](std::int32_t id) { logits[static_cast<std::size_t>(id)] = masked; };
  if (!params.allowed_token_ids.empty()) {
    const std::set<std::int32_t> allowed(params.allowed_token_ids.begin(), params.allowed_token_ids.end());
    for (std::size_t i = 0; i < logits.size(); ++i) {
      if (!allowed.contains(static_cast<std::int32_t>(i))) logits[i] = masked;
    }
  }
  const std::span<const std::int32_t> output = row.output_token_ids();
  for (const auto& word : params.bad_words) {
    const std::size_t prefix = word.size() - 1;
    if (prefix <= output.size() && std::equal(word.begin(), word.end() - 1, output.last(prefix).begin())) {
      mask(word.back());
    }
  }
  if (output.size() < static_cast<std::size_t>(params.min_tokens)) {
    for (const std::vector<std::int32_t>* ids : {&params.stop_token_ids, &params.eos_token_ids}) {
      for (const std::int32_t id : *ids) {
        if (id >= 0 && static_cast<std::size_t>(id) < logits.size()) mask(id);
      }
    }
  }
  for (const TokenBias& entry : params.logit_bias) logits[static_cast<std::size_t>(entry.token_id)] += entry.bias;
}

void apply_penalties(const SamplingRow& row, std::vector<float>& logits) {
  const SamplingParams& params = *row.params;
  std::map<std::int32_t, std::size_t> counts;  // in the output
  for (const std::int32_t id : row.token_ids) counts[id] = 0;
  for (const std::int32_t id : row.output_token_ids()) ++counts[id];
  for (const auto& [id, count] : counts) {
    float& logit = logits[static_cast<std::size_t>(id)];
    logit = logit > 0.0F ? logit / params.repetition_penalty : logit * params.repetition_penalty;
    logit -= params.frequency_penalty * static_cast<float>(count);
    logit -= params.presence_penalty * static_cast<float>(count > 0);
  }
}

std::int32_t draw(const SamplingRow& row, const std::vector<float>& logits, double top_p_factor) {
  const SamplingParams& params = *row.params;
  std::vector<std::int32_t> kept = by_likelihood(logits);
  if (params.temperature < min_temperature) return kept.front();
  const double largest = static_cast<double>(logits[static_cast<std::size_t>(kept.front())]);
  const auto exponent = [&](std::int32_t id) {
    return (static_cast<double>(logits[static_cast<std::size_t>(id)]) - largest) / static_cast<double>(params.temperature);
  };
  // Not exp(exponent) < min_p: a tiny exponent of a huge temperature would be lost in it.
  const double min_exponent = std::log(static_cast<double>(params.min_p));
  std::erase_if(kept, [&](std::int32_t id) { return exponent(id) < min_exponent; });
  if (params.top_k > 0) kept.resize(std::min(kept.size(), static_cast<std::size_t>(params.top_k)));
  if (params.top_p < 1.0F) {
    double total = 0.0;
    for (const std::int32_t id : kept) total += std::exp(exponent(id));
    double before = 0.0;
    std::size_t count = 0;
    const double wanted = top_p_factor * static_cast<double>(params.top_p) * total;
    while (count < kept.size() && before < wanted) before += std::exp(exponent(kept[count++]));
    kept.resize(count);
  }
  const NoiseKey key{params.seed, row.sequence, static_cast<std::uint32_t>(row.token_ids.size())};
  const auto score = [&](std::int32_t id) { return exponent(id) + gumbel_noise(key, static_cast<std::uint32_t>(id)); };
  return *std::max_element(kept.begin(), kept.end(), [&](std::int32_t a, std::int32_t b) { return score(a) < score(b); });
}

std::vector<TokenLogprob> find_logprobs(const SamplingRow& row, std::int32_t sampled) {
  const std::vector<std::int32_t> order = by_likelihood(row.logits);
  const auto logit = [&](std::int32_t id) { return static_cast<double>(row.logits[static_cast<std::size_t>(id)]); };
  double total = 0.0;
  for (const std::int32_t id : order) total += std::exp(logit(id) - logit(order.front()));
  std::vector<TokenLogprob> logprobs;
  const auto add = [&](std::size_t i) {
    const double logprob = logit(order[i]) - logit(order.front()) - std::log(total);
    logprobs.push_back({order[i], static_cast<float>(logprob), static_cast<std::int32_t>(i + 1)});
  };
  add(static_cast<std::size_t>(std::find(order.begin(), order.end(), sampled) - order.begin()));
  const std::size_t top = std::min(order.size(), static_cast<std::size_t>(row.params->num_logprobs));
  for (std::size_t i = 0; i < top; ++i) add(i);
  return logprobs;
}

bool is_usable(std::span<const float> logits) {
  return std::none_of(logits.begin(), logits.end(), [](float x) { return std::isnan(x); }) &&
         std::isfinite(*std::max_element(logits.begin(), logits.end()));
}

}  // namespace

SampledToken reference_sample(const SamplingRow& row, double top_p_factor) {
  if (!is_usable(row.logits)) return {-1, Error(ErrorCode::internal, "raw logits")};
  std::vector<float> edited(row.logits.begin(), row.logits.end());
  edit_before_processor(row, edited);
  apply_penalties(row, edited);
  if (!is_usable(edited)) return {-1, Error(ErrorCode::invalid_argument, "edited logits")};
  SampledToken sampled{draw(row, edited, top_p_factor)};
  if (row.params->num_logprobs >= 0) sampled.logprobs = find_logprobs(row, sampled.token_id);
  return sampled;
}

}  // namespace precast::test
