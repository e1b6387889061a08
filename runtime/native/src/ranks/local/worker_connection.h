#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "plugins/collectives/cpu/shared_memory_communicator.h"
#include "runtime/native/src/ranks/local/local_worker.h"
#include "runtime/native/src/ranks/local/step_memory.h"
#include "runtime/native/src/ranks/rank_link.h"
#include "runtime/native/src/session.h"

namespace precast {

/// A worker's connection to its engine in the memory that they share.
class WorkerConnection final : public WorkerLink {
 public:
  /// Nothing where the engine runs another build, which then knows why. Throws for descriptors that are no such memory.
  static std::unique_ptr<WorkerConnection> open(const WorkerArguments& arguments);

  Communicator& communicator() noexcept override { return communicator_; }
  void fail(std::string_view reason) noexcept override { ranks_->fail(rank_, reason); }
  bool has_failed() const noexcept override { return ranks_->has_failed(); }
  std::string failure() const override { return ranks_->failure(); }

  bool next_step(StepBatch& batch) override;
  void report_done(std::span<const float> logits) override;

  /// Whether next_step would not wait.
  bool has_next_step() const noexcept { return is_published(number_ + 1); }
  /// That the oldest step not yet reported is done, and its result where this rank is the one that gives it: rows of logits
  /// for those that need them, tokens and candidates for those that want these.
  void report_result(const StepBatch& batch, const StepResult& result, std::size_t max_candidates);
  /// That the latest step read was handed to the device.
  void report_taken() noexcept { steps_->worker(rank_).taken.store(number_); }
  /// To be called again and again while the device computes: it may wait for those of ranks that have not begun the step
  /// yet, perhaps because they compile for it. Then they are who others wait for, and not this rank.
  void show_whom_it_waits_for() noexcept;
  /// Whether no step will follow, or the ranks have failed.
  bool is_over() const noexcept { return steps_->is_stopped() || ranks_->has_failed(); }

  StepMemory& steps() noexcept { return *steps_; }

 private:
  WorkerConnection(std::shared_ptr<RankMemory> ranks, std::shared_ptr<StepMemory> steps, const WorkerArguments& arguments);

  bool is_published(std::uint32_t number) const noexcept;
  bool wait_for_step();

  std::shared_ptr<RankMemory> ranks_;
  std::shared_ptr<StepMemory> steps_;
  const std::size_t rank_;
  const unsigned spins_;
  SharedMemoryCommunicator communicator_;
  std::uint32_t number_ = 0;    ///< of the latest step that was read
  bool waits_for_a_rank_ = false;
  std::uint32_t num_done_ = 0;  ///< of the latest step that was reported
};

/// Ends this process as soon as the parent has ended. The parent may be killed at any moment, so nothing is tidied up: the
/// memory of ranks has no name, and goes with the last of them.
void end_with(int parent_pid);

}  // namespace precast
