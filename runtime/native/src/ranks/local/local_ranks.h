#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "plugins/collectives/cpu/shared_memory_communicator.h"
#include "runtime/native/src/log.h"
#include "runtime/native/src/ranks/local/step_memory.h"
#include "runtime/native/src/ranks/local/worker_processes.h"

namespace precast {

/// The processes of some ranks of an engine, on this host, and the memory through which they are told what to compute.
class LocalRanks {
 public:
  struct Settings {
    RankMemorySizes rank_memory{};
    StepMemorySizes steps{};
    std::size_t first_rank = 0;  ///< of those that are processes: all from it up to steps.world_size
    std::size_t seat = 0;        ///< of this process in rank_memory
    WaitOptions wait{};
    WorkerProgram program{};
    WorkerArguments worker{};  ///< of each of them, without what differs
    Log log{};
  };

  /// Starts them. Throws Error.
  explicit LocalRanks(const Settings& settings);
  LocalRanks(const LocalRanks&) = delete;
  LocalRanks& operator=(const LocalRanks&) = delete;
  ~LocalRanks();

  /// Returns when each has loaded its part. Throws Error where one says that it cannot, and CommunicatorError.
  void wait_until_ready();
  /// Hands them a step, as soon as they have room for it. Throws CommunicatorError.
  void publish(std::uint32_t number, const StepBatch& batch);
  /// Returns when this rank has done its part of the step. Throws CommunicatorError.
  void wait_for(std::size_t rank, std::uint32_t number);
  /// No step will follow.
  void stop() noexcept { steps_->stop(); }

  void fail(std::string_view reason) noexcept { ranks_->fail(seat_, reason); }
  bool has_failed() const noexcept { return ranks_->has_failed(); }
  std::string failure() const { return ranks_->failure(); }

  const StepMemory& steps() const noexcept { return *steps_; }
  SharedMemoryCommunicator& communicator() noexcept { return *communicator_; }

 private:
  /// A worker that has not loaded yet, and when it last showed that it lives.
  struct Loading {
    std::size_t rank = 0;
    std::uint32_t last_heartbeat = 0;
    std::chrono::steady_clock::time_point last_sign = std::chrono::steady_clock::now();
  };

  StepMemory::State state_of(std::size_t rank) const;
  void throw_if_refused(std::size_t rank) const;
  void look_for_life(Loading& worker);

  const std::size_t first_rank_;
  const std::size_t seat_;
  const std::chrono::milliseconds rank_timeout_;
  std::shared_ptr<RankMemory> ranks_;
  std::shared_ptr<StepMemory> steps_;
  std::unique_ptr<WorkerProcesses> workers_;
  std::unique_ptr<SharedMemoryCommunicator> communicator_;
};

}  // namespace precast
