#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "runtime/native/src/sampling/candidates.h"
#include "runtime/native/src/session.h"

namespace precast {

/// What a step gave for one of its logit_rows. Its arrays are those of the StepResult.
struct ResultRow {
  std::int32_t chosen = -1;         ///< the session's own token; -1: it chooses none
  std::span<const float> logits{};  ///< where they were asked for
  Candidates candidates{};          ///< where they were asked for
};

/// Walks the logit_rows of a step: each kind of array has only the rows that asked for it.
class ResultRows {
 public:
  /// `batch` and `result` outlive it; `max_candidates` is the session's.
  ResultRows(const StepBatch& batch, const StepResult& result, std::size_t vocab_size, std::size_t max_candidates)
      : batch_(batch), result_(result), vocab_size_(vocab_size), max_candidates_(max_candidates) {}

  ResultRow next() {
    const std::size_t place = num_rows_++;
    ResultRow row;
    if (!result_.token_ids.empty()) row.chosen = result_.token_ids[place];
    if (batch_.needs_logits[place] != 0) row.logits = result_.logits.subspan(num_logits_++ * vocab_size_, vocab_size_);
    if (batch_.num_candidates[place] > 0) {
      const std::size_t c = num_with_candidates_++;
      const auto count = static_cast<std::size_t>(batch_.num_candidates[place]);
      row.candidates = {.ids = result_.candidate_ids.subspan(c * max_candidates_, count),
                        .logits = result_.candidate_logits.subspan(c * max_candidates_, count),
                        .log_sum = result_.log_sums[c],
                        .chosen = row.chosen,
                        .vocab_size = vocab_size_};
    }
    return row;
  }

 private:
  const StepBatch& batch_;
  const StepResult& result_;
  const std::size_t vocab_size_;
  const std::size_t max_candidates_;
  std::size_t num_rows_ = 0;
  std::size_t num_logits_ = 0;
  std::size_t num_with_candidates_ = 0;
};

}  // namespace precast
