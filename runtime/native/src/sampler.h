#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "runtime/native/src/request.h"
#include "runtime/native/src/scheduler.h"

namespace precast {

/// Chooses the next token of one sequence from its logits.
///
/// Temperature 0 takes the largest logit, the smallest id among equals. Otherwise, in this order:
///
///     1. weights     w = exp((logit - max) / temperature)
///     2. top_k       keep the k largest
///     3. top_p       keep the fewest of the largest that hold at least top_p of the weight kept so far
///     4. draw        keep the token with the largest w / E, E standard exponential
///
/// Among equal weights the smaller id comes first. Step 4 is the Gumbel-max draw, written without its outer logarithm:
/// log(w / E) = logit / temperature + Gumbel noise + a constant. E = -log(1 - v), v = (word + 0.5) / 2^32, and word is number
/// id % 4 of Philox with key `seed` and counter (id / 4, position, 0, 0); so the token is a function of logits, parameters,
/// seed and position alone.
///
/// Holds scratch memory only; one per thread.
class Sampler {
 public:
  /// `position` is the position the new token will have: the number of tokens before it.
  /// Logits that hold NaN, or no finite largest value, give an error that ends this request alone.
  SampledToken sample(std::span<const float> logits, const SamplingParams& params, std::size_t position);

 private:
  struct Candidate {
    float weight;
    std::int32_t id;
  };

  std::int32_t draw(std::uint64_t seed, std::size_t position) const;
  void keep_top_k(std::size_t top_k);
  void keep_top_p(float top_p);

  std::vector<Candidate> kept_;
};

}  // namespace precast
