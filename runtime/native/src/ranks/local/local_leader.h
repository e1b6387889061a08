#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "runtime/native/src/engine_manifest.h"
#include "runtime/native/src/ranks/local/local_ranks.h"
#include "runtime/native/src/ranks/rank_link.h"
#include "runtime/native/src/ranks/rank_options.h"

namespace precast {

/// Rank 0's connection to ranks on the same host, in processes that it starts itself and through memory that they share.
class LocalLeader final : public LeaderLink {
 public:
  /// Starts the processes. Each has `num_threads` threads. Throws Error.
  LocalLeader(const EngineManifest& manifest, const RankOptions& options, std::uint32_t num_threads);

  Communicator& communicator() noexcept override { return ranks_.communicator(); }
  void fail(std::string_view reason) noexcept override { ranks_.fail(reason); }
  bool has_failed() const noexcept override { return ranks_.has_failed(); }
  std::string failure() const override { return ranks_.failure(); }

  void wait_until_ready() override { ranks_.wait_until_ready(); }
  void publish(std::uint32_t number, const StepBatch& batch) override { ranks_.publish(number, batch); }
  std::span<const float> wait_for_logits(std::uint32_t number, std::size_t count) override;
  void stop() noexcept override { ranks_.stop(); }

 private:
  const std::size_t logits_rank_;  ///< tensor rank 0 of the last stage
  LocalRanks ranks_;
};

}  // namespace precast
