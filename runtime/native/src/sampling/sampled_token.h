#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "runtime/native/src/error.h"

namespace precast {

/// Of the raw logits: what the model said, before anything that the request asks for changed it.
struct TokenLogprob {
  std::int32_t token_id = -1;
  float logprob = 0.0F;   ///< natural logarithm of the probability; -infinity for a logit of -infinity
  std::int32_t rank = 0;  ///< 1: the most likely token; of equal logits the smaller id comes first
};

/// What was sampled for one sequence.
struct SampledToken {
  std::int32_t token_id = -1;
  std::optional<Error> error{};          ///< set: the request ends with it, and there is no token
  std::vector<TokenLogprob> logprobs{};  ///< the sampled token, then the num_logprobs most likely in order of rank (the
                                         ///< sampled one again if it is among them); empty unless asked for
};

}  // namespace precast
