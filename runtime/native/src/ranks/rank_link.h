#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "plugins/collectives/cpu/communicator.h"
#include "runtime/native/src/step_batch.h"

namespace precast {

/// What both ends of a connection between rank 0 and another rank know: how ranks meet, and that one of them has failed.
class RankLink {
 public:
  virtual ~RankLink() = default;

  virtual Communicator& communicator() noexcept = 0;

  /// Makes every wait of every rank end with this reason, now and from now on. The first reason stays.
  virtual void fail(std::string_view reason) noexcept = 0;
  virtual bool has_failed() const noexcept = 0;
  virtual std::string failure() const = 0;  ///< once has_failed()
};

/// Rank 0's connection to the other ranks of its engine: it tells them what to compute. Steps are numbered 1, 2, 3, ...
class LeaderLink : public RankLink {
 public:
  /// Returns when every other rank has loaded its part. Throws Error where one cannot, and CommunicatorError.
  virtual void wait_until_ready() = 0;

  /// Hands a step to the other ranks, as soon as they have room for it. Throws CommunicatorError.
  virtual void publish(std::uint32_t number, const StepBatch& batch) = 0;

  /// The `count` logits that the last stage has computed in step `number`. Valid until the next call. Throws
  /// CommunicatorError.
  virtual std::span<const float> wait_for_logits(std::uint32_t number, std::size_t count) = 0;

  /// No step will follow.
  virtual void stop() noexcept = 0;
};

/// The other end.
class WorkerLink : public RankLink {
 public:
  /// Waits for the next step; false: none follows, or the ranks have failed.
  virtual bool next_step(StepBatch& batch) = 0;

  /// The step is done. `logits` are those that rank 0 waits for: none, or rows of the last stage.
  virtual void report_done(std::span<const float> logits) = 0;
};

}  // namespace precast
