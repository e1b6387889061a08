#include "runtime/native/src/sampling/sampling_params.h"

#include <cmath>
#include <span>
#include <string>

#include "runtime/native/src/concat.h"
#include "runtime/native/src/error.h"

namespace precast {
namespace {

template <typename... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  throw Error(ErrorCode::invalid_argument, concat(parts...));
}

/// `rule` completes "<field> must be ...".
template <typename T>
void require(bool holds, const char* field, const char* rule, T value) {
  if (!holds) refuse(field, " must be ", rule, ", got ", value);
}

template <typename... Where>
void check_token_id(std::int32_t token_id, std::int32_t vocab_size, const Where&... where) {
  if (token_id < 0 || token_id >= vocab_size) {
    refuse(where..., " must be in the vocabulary, [0, ", vocab_size, "), got ", token_id);
  }
}

void check_token_ids(std::span<const std::int32_t> token_ids, const std::string& field, std::int32_t vocab_size) {
  for (std::size_t i = 0; i < token_ids.size(); ++i) check_token_id(token_ids[i], vocab_size, field, "[", i, "]");
}

void check_numbers(const SamplingParams& params) {
  require(params.max_tokens >= 1, "max_tokens", ">= 1", params.max_tokens);
  require(params.min_tokens >= 0, "min_tokens", ">= 0", params.min_tokens);
  if (params.min_tokens > params.max_tokens) {
    refuse("min_tokens must be at most max_tokens, ", params.max_tokens, ", got ", params.min_tokens);
  }
  require(std::isfinite(params.temperature) && params.temperature >= 0.0F, "temperature", "finite and >= 0",
          params.temperature);
  require(params.top_k >= 0, "top_k", ">= 0", params.top_k);
  require(params.top_p > 0.0F && params.top_p <= 1.0F, "top_p", "in (0, 1]", params.top_p);
  require(params.min_p >= 0.0F && params.min_p <= 1.0F, "min_p", "in [0, 1]", params.min_p);
  require(std::isfinite(params.repetition_penalty) && params.repetition_penalty > 0.0F, "repetition_penalty",
          "finite and > 0", params.repetition_penalty);
  require(params.presence_penalty >= -2.0F && params.presence_penalty <= 2.0F, "presence_penalty", "in [-2, 2]",
          params.presence_penalty);
  require(params.frequency_penalty >= -2.0F && params.frequency_penalty <= 2.0F, "frequency_penalty", "in [-2, 2]",
          params.frequency_penalty);
  require(params.num_logprobs >= -1, "num_logprobs", ">= -1", params.num_logprobs);
}

}  // namespace

void check_sampling_params(const SamplingParams& params, std::int32_t vocab_size) {
  check_numbers(params);
  check_token_ids(params.allowed_token_ids, "allowed_token_ids", vocab_size);
  for (std::size_t i = 0; i < params.bad_words.size(); ++i) {
    if (params.bad_words[i].empty()) refuse("bad_words[", i, "] must hold at least one token id, got none");
    check_token_ids(params.bad_words[i], concat("bad_words[", i, "]"), vocab_size);
  }
  for (std::size_t i = 0; i < params.logit_bias.size(); ++i) {
    const TokenBias& entry = params.logit_bias[i];
    check_token_id(entry.token_id, vocab_size, "logit_bias[", i, "].token_id");
    if (!std::isfinite(entry.bias)) refuse("logit_bias[", i, "].bias must be finite, got ", entry.bias);
  }
}

}  // namespace precast
