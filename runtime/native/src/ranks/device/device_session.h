#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>

#include "runtime/native/src/engine_manifest.h"
#include "runtime/native/src/log.h"
#include "runtime/native/src/ranks/local/local_ranks.h"
#include "runtime/native/src/session_factory.h"

namespace precast {

struct DeviceOptions {
  std::string python_path{};  ///< "": the variable PRECAST_PYTHON, else python3 on the PATH
  std::chrono::milliseconds rank_timeout{60'000};
  std::size_t max_logit_rows = 0;  ///< of a step
  Log log{};
};

/// Computes steps on devices: every rank is a process of its own, which runs run_device_worker with a session for its device.
///
/// A rank that ends or hangs fails the step and every later one, with an Error that names it.
class DeviceSession final : public Session {
 public:
  /// Starts the processes, and returns when all have loaded. Throws Error.
  static MadeSession load(const EngineManifest& manifest, const SessionConfig& config, const DeviceOptions& options);

  ~DeviceSession() override;

  std::size_t max_in_flight() const noexcept override { return max_in_flight_; }
  bool chooses_tokens() const noexcept override { return chooses_tokens_; }
  std::size_t max_candidates() const noexcept override { return max_candidates_; }
  void enqueue(const StepBatch& batch) override;
  StepResult collect(std::uint64_t step) override;

 private:
  /// Of a step in flight: how much of a result it wants.
  struct Expected {
    std::size_t num_rows = 0;
    std::size_t num_logits = 0;
    std::size_t num_candidates = 0;  ///< rows of them
  };

  DeviceSession(const EngineManifest& manifest, const SessionConfig& config, const DeviceOptions& options);

  /// The properties that all ranks agree on; throws Error where they do not.
  MadeSession describe();
  [[noreturn]] void throw_failure() const;

  const std::size_t logits_rank_;  ///< tensor rank 0 of the last stage
  const std::size_t vocab_size_;
  LocalRanks ranks_;
  std::size_t max_in_flight_ = 1;
  std::size_t max_candidates_ = 0;
  bool chooses_tokens_ = false;
  std::uint32_t num_published_ = 0;
  std::uint32_t num_collected_ = 0;
  std::deque<Expected> in_flight_;
};

}  // namespace precast
