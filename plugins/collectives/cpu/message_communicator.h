// SPDX-License-Identifier: Apache-2.0
// Ranks that meet by messages, as on several hosts.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "plugins/collectives/cpu/communicator.h"
#include "plugins/collectives/cpu/meeting.h"
#include "plugins/collectives/cpu/message_ranks.h"

namespace precast {

// A sum of few numbers is added up by every rank for itself, of everybody's numbers. Of many, each rank is sent the numbers
// of its share, adds them up, and sends the sum to all. Both add rank 0's number first, then rank 1's and so on: their bits
// are the same, and the same as SharedMemoryCommunicator's.
//
// For t ranks and n numbers a rank sends (t - 1) n numbers in one round, or 2 (t - 1) n / t in two.
class MessageCommunicator final : public Communicator {
 public:
  // Rank ranks.rank() of stages of `num_tensor_ranks` each.
  MessageCommunicator(MessageRanks& ranks, std::size_t num_tensor_ranks);
  MessageCommunicator(const MessageCommunicator&) = delete;
  MessageCommunicator& operator=(const MessageCommunicator&) = delete;
  ~MessageCommunicator() override;

  std::size_t num_tensor_ranks() const noexcept override { return num_tensor_ranks_; }
  std::size_t tensor_rank() const noexcept override { return ranks_.rank() - stage_start_; }

  void all_reduce(std::span<const float> x, std::span<float> y, const ParallelFor& parallel_for) override;
  void all_gather(std::span<const float> x, std::size_t num_rows, std::size_t root, std::span<float> y,
                  std::size_t num_features, const ParallelFor& parallel_for) override;
  void send(std::span<const float> x) override;
  void receive(std::span<float> y) override;
  void heartbeat() noexcept override { ranks_.heartbeat(); }

  // From how many numbers on a sum of three or more ranks is shared between them. Results do not depend on it.
  void set_shared_sum_floats(std::size_t count) noexcept { shared_sum_floats_ = count; }

 private:
  // A message that is on its way, with its header.
  struct Box {
    std::vector<float> data;
    std::vector<MessageTransfer> transfers;  // several, where it is sent to several ranks
  };

  void all_reduce_piece(std::span<const float> x, std::span<float> y, std::uint64_t meeting, const ParallelFor& parallel_for);
  void sum_alone(std::span<const float> x, std::span<float> y, std::uint64_t meeting, const ParallelFor& parallel_for);
  void sum_shared(std::span<const float> x, std::span<float> y, std::uint64_t meeting, const ParallelFor& parallel_for);

  // Makes a box ready for `count` numbers in messages that begin with this word; waits until it is empty.
  void prepare(Box& box, std::size_t count, std::uint64_t word);
  void start_send(Box& box, std::size_t to, int tag, std::size_t first_float, std::size_t num_floats);
  void start_receive(std::size_t from, std::size_t count);
  // The numbers of the message of a tensor rank, whose receive was started.
  const float* wait_for_piece(std::size_t tensor_rank, std::size_t count, std::uint64_t meeting);

  // Calls f(tensor rank) for all others of the stage.
  template <typename F>
  void for_others(F&& f) {
    for (std::size_t other = 0; other < num_tensor_ranks_; ++other) {
      if (other != tensor_rank()) f(other);
    }
  }

  MessageRanks& ranks_;
  const std::size_t num_tensor_ranks_;
  const std::size_t stage_start_;  // rank of the stage's tensor rank 0
  std::size_t shared_sum_floats_;
  std::array<Box, 2> sent_;    // at meetings, in turns
  std::vector<Box> received_;  // by tensor rank
  std::vector<Box> piped_;     // to the next stage, in turns
  Box from_before_;            // from the stage before
  std::size_t turn_ = 0;
  std::size_t pipe_turn_ = 0;
};

}  // namespace precast
