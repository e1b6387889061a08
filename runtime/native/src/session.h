// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "runtime/native/src/step_batch.h"

namespace precast {

// Names a step between enqueue and collect. Steps are numbered 1, 2, 3, ... by the session.
using StepId = std::uint64_t;

// What a step produced. The logits belong to the session and are valid until the next call of enqueue or collect.
struct StepResult {
  std::span<const float> logits;  // [R, vocab_size] row-major, in the order of StepBatch::logit_rows
  std::size_t num_rows = 0;       // R
};

// Computes steps. All calls come from the engine's own thread.
//
// At most max_in_flight() steps may be between enqueue and collect; they are collected in the order they were enqueued.
// An Error thrown by enqueue or collect means that this step has no result; the session itself stays usable.
class Session {
 public:
  virtual ~Session() = default;

  virtual std::size_t max_in_flight() const noexcept = 0;
  // `batch` must stay unchanged and alive until the step is collected.
  virtual StepId enqueue(const StepBatch& batch) = 0;
  virtual StepResult collect(StepId step) = 0;
};

}  // namespace precast
