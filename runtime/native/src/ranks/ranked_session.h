#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "plugins/collectives/cpu/shared_memory_communicator.h"
#include "runtime/native/src/engine_manifest.h"
#include "runtime/native/src/ort_session.h"
#include "runtime/native/src/ranks/step_memory.h"
#include "runtime/native/src/ranks/worker_processes.h"
#include "runtime/native/src/session.h"

namespace precast {

/// How to open an engine of several ranks.
struct RankedSessionOptions {
  OrtSessionOptions rank{};     ///< of every rank; num_threads are shared out between them
  std::string worker_path{};    ///< "": PRECAST_WORKER, else beside the library
  std::chrono::milliseconds rank_timeout{60'000};
  StepLimits limits{};          ///< all but world_size, num_slots and carries_logits
  Log log{};                    ///< of what the other ranks say and write
};

/// Computes steps with all ranks of an engine on this host: rank 0 here, the others in processes of their own.
///
/// A rank that ends or hangs fails the step and every later one, with an Error that names it.
class RankedSession final : public Session {
 public:
  /// Starts the workers, loads rank 0 beside them, and returns when all are ready. Throws Error.
  static std::unique_ptr<RankedSession> load(const EngineManifest& manifest, const RankedSessionOptions& options);

  ~RankedSession() override;

  /// As many steps as there are stages, so that none of them idles.
  std::size_t max_in_flight() const noexcept override { return num_stages_; }
  void enqueue(const StepBatch& batch) override;
  StepResult collect(std::uint64_t step) override;

  const OrtSession& rank0() const noexcept { return *rank0_; }
  const WorkerProcesses& workers() const noexcept { return *workers_; }

 private:
  RankedSession(const EngineManifest& manifest, const RankedSessionOptions& options);

  void wait_until_ready(std::size_t rank);
  void wait_for(std::size_t rank, std::uint32_t number);
  [[noreturn]] void throw_failure() const;
  /// Runs `work`; what it throws after a rank failed is that failure.
  template <typename Work>
  auto guarded(Work&& work);

  const std::size_t num_stages_;
  const std::size_t logits_rank_;  ///< tensor rank 0 of the last stage
  const std::chrono::milliseconds rank_timeout_;
  std::shared_ptr<RankMemory> ranks_;
  std::shared_ptr<StepMemory> steps_;
  std::unique_ptr<WorkerProcesses> workers_;
  std::unique_ptr<SharedMemoryCommunicator> communicator_;
  std::unique_ptr<OrtSession> rank0_;
  std::uint32_t num_published_ = 0;
  std::uint32_t num_collected_ = 0;
  std::size_t vocab_size_ = 0;
  std::vector<std::size_t> logit_rows_;  ///< of the steps in flight, by their slot
};

}  // namespace precast
