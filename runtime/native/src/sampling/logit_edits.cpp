#include "runtime/native/src/sampling/logit_edits.h"

#include <algorithm>
#include <limits>

namespace precast {
namespace {

constexpr float masked = -std::numeric_limits<float>::infinity();

bool is_banned_now(const std::vector<std::int32_t>& bad_word, std::span<const std::int32_t> output) {
  const std::size_t prefix = bad_word.size() - 1;
  return prefix <= output.size() && std::equal(bad_word.begin(), bad_word.end() - 1, output.last(prefix).begin());
}

bool is_below_min_tokens(const SamplingRow& row) {
  return row.output_token_ids().size() < static_cast<std::size_t>(row.params->min_tokens);
}

void keep_only(std::span<const std::int32_t> allowed, std::span<const float> raw, std::span<float> logits) {
  std::fill(logits.begin(), logits.end(), masked);
  for (const std::int32_t id : allowed) logits[static_cast<std::size_t>(id)] = raw[static_cast<std::size_t>(id)];
}

/// Ids that no logit belongs to need no mask.
void mask(std::span<const std::int32_t> ids, std::span<float> logits) {
  for (const std::int32_t id : ids) {
    if (id >= 0 && static_cast<std::size_t>(id) < logits.size()) logits[static_cast<std::size_t>(id)] = masked;
  }
}

}  // namespace

bool LogitEdits::is_any_before_processor(const SamplingRow& row) {
  const SamplingParams& params = *row.params;
  return !params.allowed_token_ids.empty() || !params.logit_bias.empty() || is_below_min_tokens(row) ||
         std::any_of(params.bad_words.begin(), params.bad_words.end(),
                     [&](const auto& word) { return is_banned_now(word, row.output_token_ids()); });
}

void LogitEdits::apply_before_processor(const SamplingRow& row, std::span<float> logits) {
  const SamplingParams& params = *row.params;
  if (!params.allowed_token_ids.empty()) keep_only(params.allowed_token_ids, row.logits, logits);
  for (const auto& word : params.bad_words) {
    if (is_banned_now(word, row.output_token_ids())) mask(std::span(word).last(1), logits);
  }
  if (is_below_min_tokens(row)) {
    mask(params.eos_token_ids, logits);
    mask(params.stop_token_ids, logits);
  }
  for (const TokenBias& entry : params.logit_bias) logits[static_cast<std::size_t>(entry.token_id)] += entry.bias;
}

bool LogitEdits::is_any_penalty(const SamplingRow& row) {
  const SamplingParams& params = *row.params;
  return (params.repetition_penalty != 1.0F && !row.token_ids.empty()) ||
         ((params.presence_penalty != 0.0F || params.frequency_penalty != 0.0F) && !row.output_token_ids().empty());
}

void LogitEdits::apply_penalties(const SamplingRow& row, std::span<float> logits) {
  const SamplingParams& params = *row.params;
  constexpr std::uint32_t seen = 1;            // lowest bit: the token is in distinct_ids_
  constexpr std::uint32_t one_of_output = 2;   // the others count it in the output
  counts_.resize(std::max(counts_.size(), logits.size()), 0);
  distinct_ids_.clear();
  const auto count = [&](std::int32_t id, std::uint32_t amount) {
    std::uint32_t& entry = counts_[static_cast<std::size_t>(id)];
    if (entry == 0) distinct_ids_.push_back(id);
    entry = (entry | seen) + amount;
  };
  // Only the repetition penalty looks at the prompt.
  if (params.repetition_penalty != 1.0F) {
    for (const std::int32_t id : row.token_ids.first(row.num_prompt_tokens)) count(id, 0);
  }
  for (const std::int32_t id : row.output_token_ids()) count(id, one_of_output);
  for (const std::int32_t id : distinct_ids_) {
    float& logit = logits[static_cast<std::size_t>(id)];
    std::uint32_t& entry = counts_[static_cast<std::size_t>(id)];
    const std::uint32_t count_in_output = entry / one_of_output;
    entry = 0;
    logit = logit > 0.0F ? logit / params.repetition_penalty : logit * params.repetition_penalty;
    if (count_in_output == 0) continue;
    logit -= params.frequency_penalty * static_cast<float>(count_in_output);
    logit -= params.presence_penalty;
  }
}

}  // namespace precast
