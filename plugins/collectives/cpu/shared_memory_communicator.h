// SPDX-License-Identifier: Apache-2.0
// Ranks of one host that meet in shared memory.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>

#include "plugins/collectives/cpu/communicator.h"
#include "plugins/collectives/cpu/meeting.h"
#include "plugins/collectives/cpu/rank_memory.h"
#include "plugins/collectives/cpu/rank_watch.h"
#include "plugins/collectives/cpu/wait_options.h"

namespace precast {

// A meeting: every rank of the stage writes into a buffer of its own, says that it has arrived, and reads the others'
// buffers once they have. Buffers are used in turns, so that one meeting suffices: who writes a buffer again has met the
// others in between, and these had read it before.
//
// A sum of few numbers is added up by every rank for itself. Of many, each rank adds up its share, in place, and after a
// second meeting all copy the shares. Both add rank 0's number first, then rank 1's and so on, so their bits are the same.
class SharedMemoryCommunicator final : public Communicator {
 public:
  // `rank` of the ranks that `memory` is for.
  SharedMemoryCommunicator(std::shared_ptr<RankMemory> memory, std::size_t rank, WaitOptions options = {});

  std::size_t num_tensor_ranks() const noexcept override { return num_tensor_ranks_; }
  std::size_t tensor_rank() const noexcept override { return rank_ - stage_start_; }

  void all_reduce(std::span<const float> x, std::span<float> y, const ParallelFor& parallel_for) override;
  void all_gather(std::span<const float> x, std::size_t num_rows, std::size_t root, std::span<float> y,
                  std::size_t num_features, const ParallelFor& parallel_for) override;
  void send(std::span<const float> x) override;
  void receive(std::span<float> y) override;
  void heartbeat() noexcept override;

  // Of a rank that has made no progress for rank_timeout while this one waited for it `what`. Fails all ranks, and throws.
  [[noreturn]] void give_up(std::size_t rank, const char* what);

  // Returns when `word` has counted up to `target`, which rank `awaited` makes it do, or throws as every other call does.
  // `what` says what it is awaited for: "to send".
  void wait(const std::atomic<std::uint32_t>& word, std::atomic<std::uint32_t>& sleepers, std::uint32_t target,
            std::size_t awaited, const char* what);

  // From how many numbers on a sum is shared between ranks. Results do not depend on it.
  void set_shared_sum_floats(std::size_t count) noexcept { shared_sum_floats_ = count; }

 private:
  // Puts a piece of a message of `size` numbers where the others find it, and meets them.
  void give(std::span<const float> piece, Meeting what, std::size_t size, const ParallelFor& parallel_for);
  void meet(Meeting what, std::size_t size);
  void check_meeting(std::size_t rank, std::uint64_t mine);
  [[noreturn]] void throw_failure() const;
  // Of every call: shows that the rank lives, and throws if the ranks have failed already.
  void begin();

  void sum_alone(std::span<float> y, const ParallelFor& parallel_for);
  void sum_shared(std::size_t size, std::span<float> y, const ParallelFor& parallel_for);
  void add_up(std::size_t begin, std::size_t end, float* y) const noexcept;

  std::shared_ptr<RankMemory> memory_;
  const std::size_t rank_;
  const std::size_t num_tensor_ranks_;
  const std::size_t stage_start_;  // rank of the stage's tensor rank 0
  const WaitOptions options_;
  RankWatch watch_;
  std::size_t shared_sum_floats_;
  std::uint32_t num_meetings_ = 0;
  std::size_t turn_ = 0;  // of the buffers
};

}  // namespace precast
