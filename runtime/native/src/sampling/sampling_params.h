#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace precast {

/// Added to the logit of one token.
struct TokenBias {
  std::int32_t token_id = 0;
  float bias = 0.0F;  ///< finite
};

/// How a request chooses its tokens and when it ends. check_sampling_params holds the ranges.
///
/// Token ids are in [0, vocab_size), but for stop and eos ids: a tokenizer may name some that no model gives. sampler.h says
/// in which order the fields act.
struct SamplingParams {
  std::int32_t max_tokens = 32;      ///< >= 1
  std::int32_t min_tokens = 0;       ///< [0, max_tokens]: before so many output tokens, eos and stop ids are masked
  float temperature = 1.0F;          ///< finite and >= 0; below 1e-5 it is greedy
  std::int32_t top_k = 0;            ///< >= 0: keep the k most likely; 0: all
  float top_p = 1.0F;                ///< (0, 1]: keep the fewest most likely tokens that hold at least this probability
  float min_p = 0.0F;                ///< [0, 1]: keep tokens of at least this share of the largest probability
  float repetition_penalty = 1.0F;   ///< finite and > 0; over prompt and output; 1: none
  float presence_penalty = 0.0F;     ///< [-2, 2]; over the output; 0: none
  float frequency_penalty = 0.0F;    ///< [-2, 2]; over the output; 0: none
  std::uint64_t seed = 0;
  std::vector<std::int32_t> stop_token_ids{};          ///< the caller's own
  std::vector<std::int32_t> eos_token_ids{};           ///< the engine's; empty when the request ignores them
  std::vector<std::vector<std::int32_t>> bad_words{};  ///< token sequences that the output must not hold; none is empty
  std::vector<std::int32_t> allowed_token_ids{};       ///< empty: all
  std::vector<TokenBias> logit_bias{};                 ///< ids that stand here twice get both biases
  std::int32_t num_logprobs = -1;                      ///< -1: none; 0: of the sampled token; k: also of the k most likely
};

/// A temperature below this is greedy: a division by it overflows for ordinary logits, and the LLM APIs of the field agree.
inline constexpr float min_temperature = 1e-5F;

/// Whether the largest logit is taken.
inline bool is_greedy(const SamplingParams& params) noexcept { return params.temperature < min_temperature; }

/// Whether a greedy choice, behind `num_output_tokens` or later, may depend on more than the model's own logits.
inline bool changes_logits(const SamplingParams& params, std::size_t num_output_tokens) noexcept {
  return num_output_tokens < static_cast<std::size_t>(params.min_tokens) || params.repetition_penalty != 1.0F ||
         params.presence_penalty != 0.0F || params.frequency_penalty != 0.0F || !params.bad_words.empty() ||
         !params.allowed_token_ids.empty() || !params.logit_bias.empty();
}

/// Throws Error(invalid_argument) that names the field, its rule and its value, such as "top_p must be in (0, 1], got 1.5".
/// NaN is in no range.
void check_sampling_params(const SamplingParams& params, std::int32_t vocab_size);

}  // namespace precast
