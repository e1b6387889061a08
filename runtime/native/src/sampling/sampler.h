#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "plugins/cpu/kernel.h"
#include "runtime/native/src/sampling/candidates.h"
#include "runtime/native/src/sampling/logit_edits.h"
#include "runtime/native/src/sampling/logits_processor.h"
#include "runtime/native/src/sampling/row_kernels.h"
#include "runtime/native/src/sampling/sampled_token.h"
#include "runtime/native/src/sampling/token_selection.h"

namespace precast {

/// Chooses the next token of each row from its logits.
///
/// In this order:
///
///      1. logprobs          of the raw logits, for the tokens that step 12 and num_logprobs name
///      2. allowed ids       all others become -infinity
///      3. bad words         one token: -infinity; several: the last is, when the output ends with those before it
///      4. min_tokens        while the output is shorter: eos and stop ids become -infinity
///      5. logit bias        is added
///      6. logits processor  may change the row
///      7. penalties         repetition: tokens of prompt and output, logit / penalty if > 0, else logit * penalty;
///                           then logit - frequency * (count in the output) - presence * (is in the output)
///      8. greedy            the largest logit, the smallest id among equals, and that is it; else probabilities follow
///                           softmax(logit / temperature), and tokens stand in order of likelihood, then of id
///      9. min_p             keep tokens of at least min_p * the largest probability
///     10. top_k             keep the k most likely
///     11. top_p             keep a token while those before it hold less than top_p of what 9 and 10 have kept
///     12. draw              of the kept tokens the one with the largest logit / temperature + gumbel_noise(key, id)
///
/// Steps 2 to 7 follow vLLM's and OpenAI's formulas; 3 looks at the output only, as vLLM does, so a prompt that ends with the
/// beginning of a bad word does not ban its end.
///
/// Tokens and logprobs are a function of their row alone, bit for bit, and the same at every kernel level: no other row and
/// no earlier call changes them. The noise does not depend on what is kept, so a token that wins the draw among more tokens
/// wins it among fewer. Scores are fp64, taken from the difference to the row's largest logit; where steps 2 to 7 mask that
/// one, two scores could change places only if they agree in all but their last bits.
///
/// Sums of probabilities (top_p, logprobs) are right to about 1e-6, and so is where top_p ends.
///
/// A row of which there are only candidates gives the tokens, logprobs and ranks of the whole row, provided that nothing
/// edits it (steps 2 to 7) and that there are num_candidates_needed of them: all kept tokens are then among them, and noise
/// belongs to ids. Logprobs are as exact as Candidates::log_sum. One thing can differ: where logits tie exactly at the edge of
/// the candidates, the session decides which of the equals is one, not the smaller id.
///
/// Holds scratch memory only; one per thread.
class Sampler {
 public:
  explicit Sampler(KernelLevel level = best_kernel_level());

  /// One result for each row. An error ends the request of its row alone: raw logits that hold NaN or no finite largest
  /// value, candidates whose largest logit or log_sum is not finite (internal), a row in which everything has been masked
  /// (invalid_argument), a failure of the processor.
  /// Throws std::logic_error when a row wants a processor and there is none.
  std::vector<SampledToken> sample(std::span<const SamplingRow> rows, LogitsProcessor* processor = nullptr);

 private:
  std::vector<std::span<float>> process(std::span<const SamplingRow> rows, LogitsProcessor* processor,
                                        std::vector<SampledToken>& sampled);
  SampledToken sample_row(const SamplingRow& row, std::span<float> processed);
  RowScan scan(std::span<const float> logits, std::vector<float>& block_max, float* copy, float mass_temperature) const;
  SampledToken sample_candidates(const SamplingRow& row);
  std::int32_t choose(const Row& row, double mass, const SamplingRow& asked);
  std::int32_t draw_from_nucleus(const Row& row, std::int32_t most_likely, Place end, double nucleus_mass,
                                 float temperature, const NoiseKey& key) const;
  std::vector<TokenLogprob> find_logprobs(const Row& raw, double log_mass, std::int32_t sampled,
                                          std::int32_t num_most_likely);

  const RowKernels& kernels_;
  TokenSelection selection_;
  LogitEdits edits_;
  CandidateMemory candidate_memory_;
  std::vector<float> raw_block_max_;
  std::vector<float> edited_block_max_;
  std::vector<float> edited_;     // one row: a copy with the changes that its request asks for
  std::vector<float> processed_;  // the rows of a LogitsProcessor
};

}  // namespace precast
