#include <cmath>
#include <limits>
#include <string>

#include "runtime/native/src/error.h"
#include "runtime/native/src/sampling/sampling_params.h"
#include "tests/native/check.h"

using namespace precast;

namespace {

/// What check_sampling_params says after `change`; "" when it has nothing to say. The vocabulary has 10 tokens.
template <typename Change>
std::string verdict(const Change& change) {
  SamplingParams params;
  change(params);
  try {
    check_sampling_params(params, 10);
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::invalid_argument);
    return error.what();
  }
  return "";
}

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

}  // namespace

TEST("sampling parameters at the ends of their ranges are accepted") {
  CHECK_EQ(verdict([](SamplingParams&) {}), std::string());
  CHECK_EQ(verdict([](SamplingParams& p) {
             p = {.max_tokens = 1,
                  .min_tokens = 1,
                  .temperature = 0.0F,
                  .top_k = 1 << 30,
                  .top_p = std::numeric_limits<float>::denorm_min(),
                  .min_p = 1.0F,
                  .repetition_penalty = std::numeric_limits<float>::max(),
                  .presence_penalty = -2.0F,
                  .frequency_penalty = 2.0F,
                  .stop_token_ids = {-5, 1000},
                  .eos_token_ids = {1000},
                  .bad_words = {{9}, {0, 9}},
                  .allowed_token_ids = {0, 9},
                  .logit_bias = {{9, -1e30F}},
                  .num_logprobs = 100};
           }),
           std::string());
}

TEST("each sampling parameter outside its range is refused by name, rule and value") {
  const auto check = [](const std::string& message, const auto& change) { CHECK_EQ(verdict(change), message); };
  check("max_tokens must be >= 1, got 0", [](auto& p) { p.max_tokens = 0; });
  check("min_tokens must be >= 0, got -1", [](auto& p) { p.min_tokens = -1; });
  check("min_tokens must be at most max_tokens, 32, got 33", [](auto& p) { p.min_tokens = 33; });
  check("temperature must be finite and >= 0, got -1", [](auto& p) { p.temperature = -1.0F; });
  check("temperature must be finite and >= 0, got inf", [](auto& p) { p.temperature = infinity; });
  check("temperature must be finite and >= 0, got nan", [](auto& p) { p.temperature = not_a_number; });
  check("top_k must be >= 0, got -1", [](auto& p) { p.top_k = -1; });
  check("top_p must be in (0, 1], got 0", [](auto& p) { p.top_p = 0.0F; });
  check("top_p must be in (0, 1], got 1.5", [](auto& p) { p.top_p = 1.5F; });
  check("top_p must be in (0, 1], got nan", [](auto& p) { p.top_p = not_a_number; });
  check("min_p must be in [0, 1], got -0.1", [](auto& p) { p.min_p = -0.1F; });
  check("min_p must be in [0, 1], got nan", [](auto& p) { p.min_p = not_a_number; });
  check("repetition_penalty must be finite and > 0, got 0", [](auto& p) { p.repetition_penalty = 0.0F; });
  check("repetition_penalty must be finite and > 0, got inf", [](auto& p) { p.repetition_penalty = infinity; });
  check("repetition_penalty must be finite and > 0, got nan", [](auto& p) { p.repetition_penalty = not_a_number; });
  check("presence_penalty must be in [-2, 2], got 2.5", [](auto& p) { p.presence_penalty = 2.5F; });
  check("presence_penalty must be in [-2, 2], got nan", [](auto& p) { p.presence_penalty = not_a_number; });
  check("frequency_penalty must be in [-2, 2], got -3", [](auto& p) { p.frequency_penalty = -3.0F; });
  check("frequency_penalty must be in [-2, 2], got nan", [](auto& p) { p.frequency_penalty = not_a_number; });
  check("num_logprobs must be >= -1, got -2", [](auto& p) { p.num_logprobs = -2; });
  check("allowed_token_ids[1] must be in the vocabulary, [0, 10), got 10", [](auto& p) { p.allowed_token_ids = {0, 10}; });
  check("bad_words[1] must hold at least one token id, got none", [](auto& p) { p.bad_words = {{1}, {}}; });
  check("bad_words[0][1] must be in the vocabulary, [0, 10), got -1", [](auto& p) { p.bad_words = {{1, -1}}; });
  check("logit_bias[0].token_id must be in the vocabulary, [0, 10), got 11", [](auto& p) { p.logit_bias = {{11, 0.0F}}; });
  check("logit_bias[1].bias must be finite, got nan", [](auto& p) { p.logit_bias = {{1, 0.0F}, {1, not_a_number}}; });
}
