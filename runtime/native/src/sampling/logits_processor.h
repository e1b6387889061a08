#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "runtime/native/src/error.h"
#include "runtime/native/src/sampling/candidates.h"
#include "runtime/native/src/sampling/sampling_params.h"

namespace precast {

/// One sequence that wants its next token.
struct SamplingRow {
  std::span<const float> logits{};             ///< vocab_size of them, as the model gave them
  const SamplingParams* params = nullptr;      ///< valid: check_sampling_params
  std::span<const std::int32_t> token_ids{};   ///< prompt and output so far, each in [0, vocab_size)
  std::size_t num_prompt_tokens = 0;           ///< the first so many of token_ids
  std::uint32_t sequence = 0;                  ///< tells sequences with one seed apart, such as the children of n > 1
  std::uint64_t request_id = 0;                ///< for a LogitsProcessor to know whose row it is
  bool wants_processor = false;                ///< the LogitsProcessor sees this row
  Candidates candidates{};                     ///< if there are any, in place of logits; only where no edit is asked for

  std::span<const std::int32_t> output_token_ids() const { return token_ids.subspan(num_prompt_tokens); }
};

/// A row in the hands of a LogitsProcessor.
struct ProcessorRow {
  const SamplingRow& source;    ///< source.logits are the raw ones
  std::span<float> logits;      ///< to change at will; -infinity masks a token; allowed ids, bad words, min_tokens and
                                ///< logit bias have been applied. Valid during the call only.
  std::optional<Error> error{};  ///< set by the processor: this request ends with it, the others go on
};

/// Changes whole rows between logit bias and penalties: grammars, callbacks of the C API.
class LogitsProcessor {
 public:
  virtual ~LogitsProcessor() = default;

  /// The step that will give these rows has been enqueued: what needs no logits (theirs are empty) may begin elsewhere.
  /// Rows of requests that end before it is done are missing from process.
  virtual void start(std::span<const SamplingRow> rows) noexcept { static_cast<void>(rows); }

  /// Called once a step, from the thread that samples, with all rows of the step that want it (at least one) in their order.
  /// A failure of one row belongs into its `error`; an Error that is thrown ends the requests of all these rows, and of no
  /// others. Afterwards a row must hold no NaN and no +infinity, and at least one finite logit, else its request ends with
  /// an error that says so.
  virtual void process(std::span<ProcessorRow> rows) = 0;
};

/// Masks the tokens whose bit is 0: token i is bit i % 32, from the lowest, of word i / 32. This is the form in which grammar
/// libraries hand out what is allowed. Throws Error(invalid_argument) unless there is a word for each 32 tokens begun.
void apply_token_bit_mask(std::span<const std::uint32_t> allowed, std::span<float> logits);

}  // namespace precast
