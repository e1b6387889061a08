#include "runtime/native/src/sampling/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <set>
#include <stdexcept>

#include "runtime/native/src/concat.h"
#include "runtime/native/src/sampling/noise.h"

namespace precast {
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

std::int32_t draw(const SamplingRow& row, const std::vector<float>& logits) {
  const SamplingParams& params = *row.params;
  std::vector<std::int32_t> kept = by_likelihood(logits);
  if (params.temperature < min_temperature) return kept.front();
  const double largest = static_cast<double>(logits[static_cast<std::size_t>(kept.front())]);
  const auto exponent = [&](std::int32_t id) {
    return (static_cast<double>(logits[static_cast<std::size_t>(id)]) - largest) / static_cast<double>(params.temperature);
  };
  std::erase_if(kept, [&](std::int32_t id) { return !(std::exp(exponent(id)) >= static_cast<double>(params.min_p)); });
  if (params.top_k > 0) kept.resize(std::min(kept.size(), static_cast<std::size_t>(params.top_k)));
  if (params.top_p < 1.0F) {
    double total = 0.0;
    for (const std::int32_t id : kept) total += std::exp(exponent(id));
    double before = 0.0;
    std::size_t count = 0;
    while (count < kept.size() && before < static_cast<double>(params.top_p) * total) before += std::exp(exponent(kept[count++]));
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

std::optional<Error> find_raw_error(const SamplingRow& row) {
  const bool has_nan = std::any_of(row.logits.begin(), row.logits.end(), [](float x) { return std::isnan(x); });
  if (!has_nan && std::isfinite(*std::max_element(row.logits.begin(), row.logits.end()))) return std::nullopt;
  return Error(ErrorCode::internal,
               concat("the logits for position ", row.token_ids.size(), " hold ",
                      has_nan ? "NaN" : "no finite largest value",
                      ": the weights or this prompt overflow; `precast verify` checks the engine's files"));
}

std::optional<Error> find_edited_error(const SamplingRow& row, const std::vector<float>& logits) {
  const bool has_nan = std::any_of(logits.begin(), logits.end(), [](float x) { return std::isnan(x); });
  const float largest = *std::max_element(logits.begin(), logits.end());
  if (!has_nan && std::isfinite(largest)) return std::nullopt;
  if (!has_nan && largest < 0.0F) {
    return Error(ErrorCode::invalid_argument,
                 concat("no token is left for position ", row.token_ids.size(), ": allowed_token_ids, bad_words, min_tokens ",
                        "or a logits processor have masked all ", logits.size(), " of them; allow at least one"));
  }
  return Error(ErrorCode::invalid_argument,
               concat("logit bias, penalties or a logits processor have left ", has_nan ? "NaN" : "+infinity",
                      " among the logits for position ", row.token_ids.size(), "; keep logits finite, or -infinity to mask"));
}

}  // namespace

Sampler::Sampler(KernelLevel level) : level_(level) {}

std::vector<SampledToken> Sampler::sample(std::span<const SamplingRow> rows, LogitsProcessor* processor) {
  const FloatingPointScope scope;
  std::vector<SampledToken> sampled(rows.size());
  std::vector<std::vector<float>> edited(rows.size());
  std::vector<ProcessorRow> processor_rows;
  std::vector<std::size_t> processed;
  for (std::size_t r = 0; r < rows.size(); ++r) {
    sampled[r].error = find_raw_error(rows[r]);
    if (sampled[r].error) continue;
    edited[r].assign(rows[r].logits.begin(), rows[r].logits.end());
    edit_before_processor(rows[r], edited[r]);
    if (!rows[r].wants_processor) continue;
    if (processor == nullptr) throw std::logic_error(concat("row ", r, " wants a logits processor, and there is none"));
    processor_rows.push_back({rows[r], edited[r]});
    processed.push_back(r);
  }
  if (!processed.empty()) {
    try {
      processor->process(processor_rows);
    } catch (const Error& error) {
      for (ProcessorRow& row : processor_rows) row.error = error;
    }
    for (std::size_t i = 0; i < processed.size(); ++i) sampled[processed[i]].error = processor_rows[i].error;
  }
  for (std::size_t r = 0; r < rows.size(); ++r) {
    if (sampled[r].error) continue;
    apply_penalties(rows[r], edited[r]);
    sampled[r].error = find_edited_error(rows[r], edited[r]);
    if (sampled[r].error) continue;
    sampled[r].token_id = draw(rows[r], edited[r]);
    if (rows[r].params->num_logprobs >= 0) sampled[r].logprobs = find_logprobs(rows[r], sampled[r].token_id);
  }
  return sampled;
}

}  // namespace precast
