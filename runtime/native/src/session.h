// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "runtime/native/src/step_batch.h"

namespace precast {

// What a step produced. Its arrays belong to the session and are valid until the next call of enqueue or collect.
struct StepResult {
  std::span<const float> logits;            // [rows that need them, vocab_size] row-major, in the order of logit_rows
  std::span<const std::int32_t> token_ids;  // [R], of sessions that choose tokens: of each row the largest logit, the
                                            // smallest id among equals
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
  // `batch` must stay unchanged and alive until the step is collected.
  virtual void enqueue(const StepBatch& batch) = 0;
  // Of the oldest step in flight, whose id is `step`.
  virtual StepResult collect(std::uint64_t step) = 0;
  // A hint: nobody waits for this step's result any more. It is collected all the same.
  virtual void cancel(std::uint64_t step) { static_cast<void>(step); }
};

}  // namespace precast
