// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "runtime/native/src/step_batch.h"

namespace precast {

// What a step produced. Its arrays belong to the session and are valid until the next call of enqueue or collect.
//
// C are the rows with num_candidates > 0, K is max_candidates(). Of a row's K places those behind its num_candidates hold
// nothing.
struct StepResult {
  std::span<const float> logits{};            // [rows that need them, vocab_size] row-major, in the order of logit_rows
  std::span<const std::int32_t> token_ids{};  // [R], of sessions that choose tokens: of each row the largest logit, the
                                              // smallest id among equals; -1 where there is none, for NaN
  std::span<const std::int32_t> candidate_ids{};  // [C, K] row-major, in the order of logit_rows: the most likely tokens
  std::span<const float> candidate_logits{};      // [C, K] theirs, in descending order; equals in any
  std::span<const float> log_sums{};              // [C] log of the sum of exp(logit) over the whole row
};

// Computes steps. All calls come from the engine's own thread.
//
// At most max_in_flight() steps may be between enqueue and collect; they are collected in the order they were enqueued.
// An Error thrown by enqueue or collect means that this step has no result; the session itself stays usable.
class Session {
 public:
  virtual ~Session() = default;

  virtual std::size_t max_in_flight() const noexcept = 0;
  // Whether results have token_ids, and token_sources are understood.
  virtual bool chooses_tokens() const noexcept { return false; }
  // How many of a row's most likely tokens it can give, at most the vocabulary; 0: none.
  virtual std::size_t max_candidates() const noexcept { return 0; }
  // `batch` must stay unchanged and alive until the step is collected.
  virtual void enqueue(const StepBatch& batch) = 0;
  // Of the oldest step in flight, whose id is `step`.
  virtual StepResult collect(std::uint64_t step) = 0;
  // Whether collecting the oldest step in flight would not wait. True also where nobody can tell.
  virtual bool is_done(std::uint64_t step) {
    static_cast<void>(step);
    return true;
  }
  // A hint: nobody waits for this step's result any more. It is collected all the same.
  virtual void cancel(std::uint64_t step) { static_cast<void>(step); }
};

}  // namespace precast
