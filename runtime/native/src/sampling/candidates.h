#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "runtime/native/src/sampling/row.h"
#include "runtime/native/src/sampling/sampling_params.h"

namespace precast {

/// The most likely tokens of a row: what a session gives where the whole row is not needed.
struct Candidates {
  std::span<const std::int32_t> ids{};  ///< distinct, each in [0, vocab_size); empty: there are none
  std::span<const float> logits{};      ///< theirs, in descending order; equals in any
  float log_sum = 0.0F;                 ///< log of the sum of exp(logit) over the whole row
  std::int32_t chosen = -1;             ///< the session's own choice, the smallest id of the largest logit; -1: it makes none
  std::size_t vocab_size = 0;           ///< of the row that they are from
};

/// How many candidates are as good as the whole row where nothing edits its logits; 0: no number of them is.
std::int32_t num_candidates_needed(const SamplingParams& params) noexcept;

/// What a CandidateRow lies in. All -infinity while there is none, so that a row costs what it has candidates and not what
/// its vocabulary has tokens.
struct CandidateMemory {
  std::vector<float> logits;
  std::vector<float> block_max;
};

/// Candidates as the row that they are from, with -infinity in all other places. So every pass that looks for what is likely
/// finds in it, bit for bit, what it finds in the whole row, and passes over the blocks in which there is nothing.
///
/// Where more tokens tie for the largest logit than there are candidates, the session's choice need not be one of them; it is
/// in the row all the same, since the request goes on with it.
class CandidateRow {
 public:
  /// There is at least one candidate, and the largest is finite. Both arguments outlive the row, alone in its memory.
  CandidateRow(const Candidates& candidates, CandidateMemory& memory);
  ~CandidateRow();
  CandidateRow(const CandidateRow&) = delete;
  CandidateRow& operator=(const CandidateRow&) = delete;

  Row row() const noexcept;

 private:
  const Candidates& candidates_;
  CandidateMemory& memory_;
};

}  // namespace precast
