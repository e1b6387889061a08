#pragma once

#include <cstdint>
#include <memory>

#include "plugins/collectives/cpu/shared_memory_communicator.h"
#include "runtime/native/src/engine_manifest.h"
#include "runtime/native/src/ranks/local/step_memory.h"
#include "runtime/native/src/ranks/local/worker_processes.h"
#include "runtime/native/src/ranks/rank_link.h"
#include "runtime/native/src/ranks/rank_options.h"

namespace precast {

/// Rank 0's connection to ranks on the same host, in processes that it starts itself and through memory that they share.
class LocalLeader final : public LeaderLink {
 public:
  /// Starts the processes. Each has `num_threads` threads. Throws Error.
  LocalLeader(const EngineManifest& manifest, const RankOptions& options, std::uint32_t num_threads);
  LocalLeader(const LocalLeader&) = delete;
  LocalLeader& operator=(const LocalLeader&) = delete;
  ~LocalLeader() override;

  Communicator& communicator() noexcept override { return *communicator_; }
  void fail(std::string_view reason) noexcept override { ranks_->fail(0, reason); }
  bool has_failed() const noexcept override { return ranks_->has_failed(); }
  std::string failure() const override { return ranks_->failure(); }

  void wait_until_ready() override;
  void publish(std::uint32_t number, const StepBatch& batch) override;
  std::span<const float> wait_for_logits(std::uint32_t number, std::size_t count) override;
  void stop() noexcept override;

 private:
  void wait_until_ready(std::size_t rank);
  void wait_for(std::size_t rank, std::uint32_t number);

  const std::size_t logits_rank_;  ///< tensor rank 0 of the last stage
  const std::chrono::milliseconds rank_timeout_;
  std::shared_ptr<RankMemory> ranks_;
  std::shared_ptr<StepMemory> steps_;
  std::unique_ptr<WorkerProcesses> workers_;
  std::unique_ptr<SharedMemoryCommunicator> communicator_;
};

}  // namespace precast
