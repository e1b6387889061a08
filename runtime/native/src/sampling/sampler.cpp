#include "runtime/native/src/sampling/sampler.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <utility>

#include "plugins/cpu/mxcsr.h"
#include "runtime/native/src/concat.h"
#include "runtime/native/src/sampling/log64.h"

namespace precast {
namespace {

std::optional<Error> find_raw_error(const RowScan& scan, const SamplingRow& row) {
  if (!scan.has_nan && std::isfinite(scan.max)) return std::nullopt;
  return Error(ErrorCode::internal,
               concat("the logits for position ", row.token_ids.size(), " hold ",
                      scan.has_nan ? "NaN" : "no finite largest value",
                      ": the weights or this prompt overflow; `precast verify` checks the engine's files"));
}

/// NaN or infinity anywhere in the row shows in one of the two, whatever the session made of the candidates.
std::optional<Error> find_candidates_error(const SamplingRow& row) {
  const Candidates& candidates = row.candidates;
  if (std::isfinite(candidates.logits.front()) && std::isfinite(candidates.log_sum)) return std::nullopt;
  return Error(ErrorCode::internal,
               concat("of the logits for position ", row.token_ids.size(), " the largest is ", candidates.logits.front(),
                      " and the log of the sum of exp(logit) ",
                      candidates.log_sum, ": the weights or this prompt overflow; `precast verify` checks the engine's files"));
}

std::optional<Error> find_edited_error(const RowScan& scan, const SamplingRow& row) {
  if (!scan.has_nan && std::isfinite(scan.max)) return std::nullopt;
  if (!scan.has_nan && scan.max < 0.0F) {
    return Error(ErrorCode::invalid_argument,
                 concat("no token is left for position ", row.token_ids.size(), ": allowed_token_ids, bad_words, min_tokens ",
                        "or a logits processor have masked all ", row.logits.size(), " of them; allow at least one"));
  }
  return Error(ErrorCode::invalid_argument,
               concat("logit_bias, penalties or a logits processor have made a logit for position ", row.token_ids.size(), " ",
                      scan.has_nan ? "NaN" : "+infinity", "; keep logits finite, or -infinity to mask a token"));
}

}  // namespace

Sampler::Sampler(KernelLevel level) : kernels_(row_kernels(level)), selection_(kernels_) {}

std::vector<SampledToken> Sampler::sample(std::span<const SamplingRow> rows, LogitsProcessor* processor) {
  const FloatingPointScope scope;
  std::vector<SampledToken> sampled(rows.size());
  const std::vector<std::span<float>> processed = process(rows, processor, sampled);
  for (std::size_t r = 0; r < rows.size(); ++r) {
    if (sampled[r].error) continue;
    sampled[r] = rows[r].candidates.ids.empty() ? sample_row(rows[r], processed[r]) : sample_candidates(rows[r]);
  }
  return sampled;
}

// ----------------------------------------------------------------------------------------------------------- processor

/// What the processor made of each row that wants it; an empty span for the others. Failures go to `sampled`.
std::vector<std::span<float>> Sampler::process(std::span<const SamplingRow> rows, LogitsProcessor* processor,
                                               std::vector<SampledToken>& sampled) {
  std::vector<std::span<float>> processed(rows.size());
  std::size_t num_logits = 0;
  for (const SamplingRow& row : rows) num_logits += row.wants_processor ? row.logits.size() : 0;
  if (num_logits == 0) return processed;
  if (processor == nullptr) throw std::logic_error("a row wants a logits processor, and there is none");

  processed_.resize(num_logits);
  std::span<float> free = processed_;
  std::vector<ProcessorRow> processor_rows;
  std::vector<std::size_t> indices;  // of processor_rows among rows
  for (std::size_t r = 0; r < rows.size(); ++r) {
    if (!rows[r].wants_processor) continue;
    const std::span<float> logits = free.first(rows[r].logits.size());
    free = free.subspan(logits.size());
    sampled[r].error = find_raw_error(scan(rows[r].logits, raw_block_max_, logits.data(), 0.0F), rows[r]);
    if (sampled[r].error) continue;
    LogitEdits::apply_before_processor(rows[r], logits);
    processed[r] = logits;
    processor_rows.push_back({.source = rows[r], .logits = logits});
    indices.push_back(r);
  }
  if (processor_rows.empty()) return processed;
  try {
    processor->process(processor_rows);
  } catch (const Error& error) {
    for (ProcessorRow& row : processor_rows) row.error = error;
  }
  for (std::size_t i = 0; i < indices.size(); ++i) sampled[indices[i]].error = std::move(processor_rows[i].error);
  return processed;
}

// ----------------------------------------------------------------------------------------------------------------- row

SampledToken Sampler::sample_row(const SamplingRow& row, std::span<float> processed) {
  const SamplingParams& params = *row.params;
  const bool is_processed = !processed.empty();
  const bool is_edited = is_processed || LogitEdits::is_any_before_processor(row) || LogitEdits::is_any_penalty(row);
  if (is_edited && !is_processed) edited_.resize(row.logits.size());
  const std::span<float> edited = is_processed ? processed : std::span(edited_);

  // The one mass that a scan gives: of the raw logits for logprobs, else of what top_p is about.
  const bool is_plain_top_p = params.top_p < 1.0F && params.top_k == 0 && params.min_p == 0.0F;
  const float top_p_temperature = is_plain_top_p && params.temperature >= min_temperature ? params.temperature : 0.0F;
  const float raw_temperature = params.num_logprobs >= 0 ? 1.0F : is_edited ? 0.0F : top_p_temperature;
  float* const copy = is_edited && !is_processed ? edited.data() : nullptr;
  const RowScan raw_scan = scan(row.logits, raw_block_max_, copy, raw_temperature);
  SampledToken sampled{.token_id = -1, .error = find_raw_error(raw_scan, row)};
  if (sampled.error) return sampled;
  const Row raw{row.logits.data(), row.logits.size(), raw_block_max_.data(), raw_scan.max};
  Row chosen_from = raw;
  double mass = raw_temperature == top_p_temperature ? raw_scan.mass : 0.0;
  if (is_edited) {
    if (!is_processed) LogitEdits::apply_before_processor(row, edited);
    if (LogitEdits::is_any_penalty(row)) edits_.apply_penalties(row, edited);
    const RowScan edited_scan = scan(edited, edited_block_max_, nullptr, top_p_temperature);
    sampled.error = find_edited_error(edited_scan, row);
    if (sampled.error) return sampled;
    chosen_from = {edited.data(), edited.size(), edited_block_max_.data(), edited_scan.max};
    mass = edited_scan.mass;
  }
  sampled.token_id = choose(chosen_from, mass, row);
  if (params.num_logprobs >= 0) {
    sampled.logprobs = find_logprobs(raw, log64(raw_scan.mass), sampled.token_id, params.num_logprobs);
  }
  return sampled;
}

SampledToken Sampler::sample_candidates(const SamplingRow& row) {
  const Candidates& candidates = row.candidates;
  SampledToken sampled{.token_id = -1, .error = find_candidates_error(row)};
  if (sampled.error) return sampled;
  const CandidateRow candidate_row(candidates, candidate_memory_);
  const Row raw = candidate_row.row();
  sampled.token_id = choose(raw, 0.0, row);
  if (row.params->num_logprobs >= 0) {
    const double log_mass = static_cast<double>(candidates.log_sum) - static_cast<double>(raw.max);
    sampled.logprobs = find_logprobs(raw, log_mass, sampled.token_id, row.params->num_logprobs);
  }
  return sampled;
}

RowScan Sampler::scan(std::span<const float> logits, std::vector<float>& block_max, float* copy,
                      float mass_temperature) const {
  block_max.resize(num_row_blocks(logits.size()));
  return kernels_.scan(logits.data(), logits.size(), block_max.data(), copy, mass_temperature);
}

/// The token of `asked` from `row`. `mass` of the row at the request's temperature; 0: not known.
std::int32_t Sampler::choose(const Row& row, double mass, const SamplingRow& asked) {
  const SamplingParams& params = *asked.params;
  const NoiseKey key{params.seed, asked.sequence, static_cast<std::uint32_t>(asked.token_ids.size())};
  const std::int32_t most_likely = find_most_likely(row);
  if (params.temperature < min_temperature) return most_likely;
  Place end = end_of_row;
  if (params.min_p > 0.0F) end = end_of_min_p(row, params.temperature, params.min_p);
  if (params.top_k > 0 && static_cast<std::size_t>(params.top_k) < row.num_tokens) {
    const Place last = selection_.most_likely(row, static_cast<std::size_t>(params.top_k)).back();
    end = std::min(end, Place{last.logit, last.id + 1}, comes_before);
  }
  if (params.top_p == 1.0F) return kernels_.draw(row, most_likely, end, params.temperature, key).id;
  if (mass == 0.0 || comes_before(end, end_of_row)) mass = kernels_.mass_before(row, end, params.temperature);
  return draw_from_nucleus(row, most_likely, end, static_cast<double>(params.top_p) * mass, params.temperature, key);
}

/// Draws without knowing what top_p keeps. The winner among all tokens before `end` is the winner among fewer if it is one of
/// them: if the tokens before it hold less than `nucleus_mass`. If not, it is not kept, nor is any token behind it, and the
/// next draw is among those before it. The most likely token is always kept.
std::int32_t Sampler::draw_from_nucleus(const Row& row, std::int32_t most_likely, Place end, double nucleus_mass,
                                        float temperature, const NoiseKey& key) const {
  for (;;) {
    const std::int32_t id = kernels_.draw(row, most_likely, end, temperature, key).id;
    end = {row.logits[id], id};
    if (id == most_likely || kernels_.mass_before(row, end, temperature) < nucleus_mass) return id;
  }
}

// ------------------------------------------------------------------------------------------------------------ logprobs

/// `log_mass`: the logarithm of the mass of the raw logits at temperature 1.
std::vector<TokenLogprob> Sampler::find_logprobs(const Row& raw, double log_mass, std::int32_t sampled,
                                                 std::int32_t num_most_likely) {
  std::vector<TokenLogprob> logprobs;
  const auto add = [&](const Place& place, std::size_t num_before) {
    // The difference first: a logarithm would be lost in a huge logit.
    const double logprob = static_cast<double>(place.logit) - static_cast<double>(raw.max) - log_mass;
    logprobs.push_back({place.id, static_cast<float>(logprob), static_cast<std::int32_t>(num_before + 1)});
  };
  const Place place{raw.logits[sampled], sampled};
  add(place, kernels_.count_before(raw, place));
  if (num_most_likely == 0) return logprobs;
  const std::span<Place> most_likely = selection_.most_likely(raw, static_cast<std::size_t>(num_most_likely));
  std::sort(most_likely.begin(), most_likely.end(), comes_before);
  for (std::size_t i = 0; i < most_likely.size(); ++i) add(most_likely[i], i);
  return logprobs;
}

}  // namespace precast
