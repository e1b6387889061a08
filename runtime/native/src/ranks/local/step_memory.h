#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "plugins/collectives/cpu/shared_memory.h"
#include "runtime/native/src/ranks/step_codec.h"
#include "runtime/native/src/step_batch.h"

namespace precast {

struct StepMemorySizes {
  std::size_t world_size = 1;
  std::size_t num_slots = 1;    ///< at least the steps in flight; a power of two, so that numbers may wrap around
  bool carries_logits = false;  ///< whether the last stage hands logits to rank 0 here: where there is more than one
  StepLimits limits{};
};

/// How rank 0 tells the other ranks of its engine what to compute, and they tell it how far they are: in shared memory.
///
/// Steps are numbered 1, 2, 3, ... Step n lies in slot n mod num_slots until every rank has done it.
class StepMemory {
 public:
  enum class State : std::uint32_t { starting = 0, ready = 1, failed = 2 };

  struct Worker {
    alignas(64) std::atomic<std::uint32_t> done;  ///< its latest step
    std::atomic<std::uint32_t> done_sleepers;
    std::atomic<std::uint32_t> state;  ///< a State
    std::int32_t error_code;           ///< of State::failed
    std::uint32_t error_bytes;
    char error[1024];
  };

  /// Throws std::system_error.
  static std::shared_ptr<StepMemory> create(const StepMemorySizes& sizes, std::uint64_t build_id);

  /// The memory that rank 0 made. Throws std::invalid_argument where that runs another build of precast or of the engine.
  static std::shared_ptr<StepMemory> open(std::shared_ptr<SharedMemory> memory, std::uint64_t build_id);

  const SharedMemory& memory() const noexcept { return *memory_; }
  const StepMemorySizes& sizes() const noexcept { return sizes_; }

  /// Of rank 0: writes the step with this number, whose slot must be free, and wakes the workers.
  void publish(std::uint32_t number, const StepBatch& batch);
  /// Of rank 0: no step will follow.
  void stop() noexcept;

  /// Of a worker: the step with this number, which has been published.
  void read(std::uint32_t number, StepBatch& batch) const;
  void report_done(std::size_t rank, std::uint32_t number) noexcept;
  void report_ready(std::size_t rank) noexcept;
  void report_error(std::size_t rank, std::int32_t code, const std::string& text) noexcept;

  std::atomic<std::uint32_t>& published() const noexcept;
  std::atomic<std::uint32_t>& published_sleepers() const noexcept;
  bool is_stopped() const noexcept;
  Worker& worker(std::size_t rank) const noexcept;
  /// [max_logit_rows, vocab_size]: the logits of a step, written by the last stage.
  float* logits(std::uint32_t number) const noexcept;

 private:
  StepMemory(std::shared_ptr<SharedMemory> memory, const StepMemorySizes& sizes);

  std::byte* slot(std::uint32_t number) const noexcept;

  std::shared_ptr<SharedMemory> memory_;
  const StepMemorySizes sizes_;
};

}  // namespace precast
