// SPDX-License-Identifier: Apache-2.0
// What the ranks of an engine share on one host, and where it lies in their shared memory.
//
//     header             magic, layout, sizes; who has said that the ranks have failed, if anybody has
//     reasons            one of each rank and one of who watches them: why they have failed
//     rank 0: state      how far it has come in the collectives of its stage, that it is alive
//             buffers    two, used in turns: what it gives to the others
//             channel    a ring of slots: what it has sent to the next stage
//     rank 1: ...
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "plugins/collectives/cpu/rank_watch.h"
#include "plugins/collectives/cpu/shared_memory.h"

namespace precast {

// How large everything is; the same for all ranks.
struct RankMemorySizes {
  std::size_t tensor_parallel_size = 1;
  std::size_t pipeline_parallel_size = 1;
  std::size_t buffer_bytes = std::size_t{1} << 20;  // of each of the two buffers of a rank; a multiple of 64
  std::size_t slot_bytes = std::size_t{256} << 10;  // of a message's piece in a channel; a multiple of 64
  std::size_t num_slots = 8;                        // of a channel; a power of two, so that counters may wrap around

  std::size_t world_size() const noexcept { return tensor_parallel_size * pipeline_parallel_size; }
  bool operator==(const RankMemorySizes&) const = default;
};

// What a rank says of itself. Words that others wait for have a cache line of their own.
struct RankState {
  // Of the rank's latest arrival at a meeting of its stage. Wraps around.
  alignas(64) std::atomic<std::uint32_t> arrived;
  std::atomic<std::uint32_t> sleepers;  // on `arrived`
  // What it does at its meetings, by the parity of their numbers: it can be one ahead of the slowest.
  std::atomic<std::uint64_t> meeting[2];
  // As in RankSigns, where heartbeat is the progress.
  alignas(64) std::atomic<std::uint32_t> heartbeat;
  std::atomic<std::uint32_t> pulse;
  std::atomic<std::uint32_t> waits_for;

  // It waits for `rank`.
  void show_waiting(std::size_t rank) noexcept;
  // It waits no more, which is progress: nobody sees it wait for nobody without having made any.
  void show_going_on() noexcept;
  // What others see.
  RankSigns signs() const noexcept;
};

// What one rank sends to the next stage. Numbers of pieces; both wrap around.
struct ChannelState {
  alignas(64) std::atomic<std::uint32_t> sent;
  std::atomic<std::uint32_t> sent_sleepers;
  alignas(64) std::atomic<std::uint32_t> received;
  std::atomic<std::uint32_t> received_sleepers;
};

// Before the floats of a slot.
struct SlotHeader {
  std::uint64_t message_floats;  // of the whole message
  std::uint64_t piece_floats;
};

class RankMemory {
 public:
  // New memory for these ranks. Throws std::system_error, and std::invalid_argument for sizes that make no sense.
  static std::shared_ptr<RankMemory> create(const RankMemorySizes& sizes);

  // The memory that another process made. Throws std::invalid_argument that says what differs where that has another
  // layout, because its precast is another one, or is too small for what it says.
  static std::shared_ptr<RankMemory> open(std::shared_ptr<SharedMemory> memory);

  const RankMemorySizes& sizes() const noexcept { return sizes_; }
  const SharedMemory& memory() const noexcept { return *memory_; }

  RankState& state(std::size_t rank) const noexcept;
  ChannelState& channel(std::size_t rank) const noexcept;
  float* buffer(std::size_t rank, std::size_t turn) const noexcept;  // turn: 0 or 1
  SlotHeader& slot(std::size_t rank, std::size_t index) const noexcept;
  float* slot_floats(std::size_t rank, std::size_t index) const noexcept;

  std::size_t buffer_floats() const noexcept { return sizes_.buffer_bytes / sizeof(float); }
  std::size_t slot_floats() const noexcept { return (sizes_.slot_bytes - 64) / sizeof(float); }

  // Makes every wait of every rank end with this reason, now and from now on. The first reason stays. `author` is the rank
  // that says so, or watcher(), in one thread at a time.
  void fail(std::size_t author, std::string_view reason) const noexcept;
  std::size_t watcher() const noexcept { return sizes_.world_size(); }
  bool has_failed() const noexcept;
  std::string failure() const;  // once has_failed()

 private:
  RankMemory(std::shared_ptr<SharedMemory> memory, const RankMemorySizes& sizes);

  struct Reason;

  Reason& reason(std::size_t author) const noexcept;
  std::byte* rank_data(std::size_t rank) const noexcept;

  std::shared_ptr<SharedMemory> memory_;
  const RankMemorySizes sizes_;
};

}  // namespace precast
