#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

#include "plugins/collectives/cpu/shared_memory.h"
#include "runtime/native/src/ranks/step_codec.h"
#include "runtime/native/src/step_batch.h"

namespace precast {

struct StepMemorySizes {
  std::size_t world_size = 1;
  std::size_t num_slots = 1;    ///< at least the steps in flight; a power of two, so that numbers may wrap around
  bool carries_logits = false;  ///< whether logits come back here: not where rank 0 computes them in its own process
  std::size_t max_candidates = 0;  ///< most of a row that may come back, where chosen tokens do
  StepLimits limits{};
};

/// The result of a step, as large as it may be. R = max_logit_rows, V = vocab_size, K = max_candidates.
struct StepArrays {
  float* logits = nullptr;                ///< [R, V]
  std::int32_t* token_ids = nullptr;      ///< [R]
  std::int32_t* candidate_ids = nullptr;  ///< [R, K]
  float* candidate_logits = nullptr;      ///< [R, K]
  float* log_sums = nullptr;              ///< [R]
};

/// What a worker says of its session when it has loaded.
struct WorkerProperties {
  std::uint32_t num_blocks = 0;
  std::uint32_t max_in_flight = 0;
  std::uint32_t chooses_tokens = 0;
  std::uint32_t max_candidates = 0;
  char device[128] = {};  ///< a name for people, ends with a zero
};

/// How an engine tells the processes of its ranks what to compute, and they tell it how far they are: in shared memory.
/// "Rank 0" below is whoever schedules: rank 0 itself, or the engine where every rank is a process.
///
/// Steps are numbered 1, 2, 3, ... Step n lies in slot n mod num_slots until every rank has done it.
class StepMemory {
 public:
  enum class State : std::uint32_t { starting = 0, ready = 1, failed = 2 };
  static constexpr std::size_t most_exchanged_bytes = 4096;

  struct Worker {
    alignas(64) std::atomic<std::uint32_t> done;  ///< its latest step
    std::atomic<std::uint32_t> done_sleepers;
    std::atomic<std::uint32_t> taken;  ///< its latest step that was handed to a device
    std::atomic<std::uint32_t> state;  ///< a State
    std::int32_t error_code;           ///< of State::failed
    std::uint32_t error_bytes;
    char error[1024];
    WorkerProperties properties;  ///< of State::ready
    // What it shows the other ranks, in turns, and how often it has: see exchange.
    std::atomic<std::uint32_t> num_shown;
    std::byte shown[2][most_exchanged_bytes];
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
  void report_ready(std::size_t rank, const WorkerProperties& properties = {}) noexcept;
  void report_error(std::size_t rank, std::int32_t code, std::string_view text) noexcept;

  std::atomic<std::uint32_t>& published() const noexcept;
  std::atomic<std::uint32_t>& published_sleepers() const noexcept;
  bool is_stopped() const noexcept;
  Worker& worker(std::size_t rank) const noexcept;
  /// Of a step, written by tensor rank 0 of the last stage, where carries_logits.
  StepArrays result(std::uint32_t number) const noexcept;

  /// Of a worker: shows the others `mine`, and writes what they show into `all`, rank after rank, each of the same size, at
  /// most most_exchanged_bytes. All ranks call it equally often. While it waits it calls `wait`, which may throw.
  template <typename Wait>
  void exchange(std::size_t rank, std::span<const std::byte> mine, std::span<std::byte> all, Wait&& wait) const {
    // Two places suffice: who shows something again has seen what all showed in between, and they had read it before.
    if (mine.size() > most_exchanged_bytes || all.size() != mine.size() * sizes_.world_size) {
      throw std::logic_error("ranks show each other more than there is room for");
    }
    Worker& self = worker(rank);
    const std::uint32_t turn = self.num_shown.load();
    std::copy(mine.begin(), mine.end(), self.shown[turn % 2]);
    self.num_shown.store(turn + 1);
    for (std::size_t other = 0; other < sizes_.world_size; ++other) {
      while (worker(other).num_shown.load() <= turn) wait();
      const std::byte* const theirs = worker(other).shown[turn % 2];
      std::copy(theirs, theirs + mine.size(), all.begin() + static_cast<std::ptrdiff_t>(other * mine.size()));
    }
  }

 private:
  StepMemory(std::shared_ptr<SharedMemory> memory, const StepMemorySizes& sizes);

  std::byte* slot(std::uint32_t number) const noexcept;

  std::shared_ptr<SharedMemory> memory_;
  const StepMemorySizes sizes_;
};

}  // namespace precast
