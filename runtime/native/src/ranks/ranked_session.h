#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "runtime/native/src/engine_manifest.h"
#include "runtime/native/src/ort_session.h"
#include "runtime/native/src/ranks/rank_link.h"
#include "runtime/native/src/session.h"

namespace precast {

/// Computes steps with all ranks of an engine: rank 0 here, the others wherever the link leads.
///
/// A rank that ends or hangs fails the step and every later one, with an Error that names it.
class RankedSession final : public Session {
 public:
  /// Loads rank 0, and returns when the other ranks are ready. Throws Error.
  static std::unique_ptr<RankedSession> load(const EngineManifest& manifest, const OrtSessionOptions& rank0,
                                             std::unique_ptr<LeaderLink> link);

  ~RankedSession() override;

  /// As many steps as there are stages, so that none of them idles.
  std::size_t max_in_flight() const noexcept override { return num_stages_; }
  void enqueue(const StepBatch& batch) override;
  StepResult collect(std::uint64_t step) override;

  const OrtSession& rank0() const noexcept { return *rank0_; }

 private:
  RankedSession(const EngineManifest& manifest, const OrtSessionOptions& rank0, std::unique_ptr<LeaderLink> link);

  [[noreturn]] void throw_failure() const;
  /// Runs `work`; what it throws after a rank failed is that failure.
  template <typename Work>
  auto guarded(Work&& work);

  const std::size_t num_stages_;
  const std::size_t vocab_size_;
  std::unique_ptr<LeaderLink> link_;
  std::unique_ptr<OrtSession> rank0_;
  std::uint32_t num_published_ = 0;
  std::uint32_t num_collected_ = 0;
  std::vector<std::size_t> logit_rows_;  ///< of the steps in flight, by their numbers, which may wrap around
};

}  // namespace precast
