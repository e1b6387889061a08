// SPDX-License-Identifier: Apache-2.0
#include "plugins/collectives/cpu/shared_memory_communicator.h"

#include <algorithm>
#include <string>
#include <utility>

#include "plugins/collectives/cpu/futex.h"
#include "plugins/collectives/cpu/gather_columns.h"
#include "plugins/collectives/cpu/ordered_sum.h"

#if defined(PRECAST_X86)
#include <immintrin.h>
#endif

namespace precast {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds longest_sleep{50};  // how often who waits looks whether others live
constexpr std::size_t default_shared_sum_floats = 64 * 1024;

void pause() noexcept {
#if defined(PRECAST_X86)
  _mm_pause();
#endif
}

// Whether a counter that wraps around has come to `target`.
bool reached(std::uint32_t value, std::uint32_t target) noexcept {
  return static_cast<std::int32_t>(value - target) >= 0;
}

// Counts a word up for those who wait for it. Sequentially consistent, as the sleepers' count is: either they are seen
// here, or they see the new value before they sleep.
void publish(std::atomic<std::uint32_t>& word, const std::atomic<std::uint32_t>& sleepers, std::uint32_t value) noexcept {
  word.store(value);
  if (sleepers.load() != 0) futex_wake_all(word);
}

// Shows others that a rank waits, until the wait has ended: also while it says who is stuck, or they would blame this one.
class Waiting {
 public:
  Waiting(RankState& own, std::atomic<std::uint32_t>& sleepers, std::size_t awaited) noexcept
      : own_(own), sleepers_(sleepers) {
    sleepers_.fetch_add(1);
    own_.show_waiting(awaited);
  }
  Waiting(const Waiting&) = delete;
  Waiting& operator=(const Waiting&) = delete;
  ~Waiting() {
    own_.show_going_on();
    sleepers_.fetch_sub(1);
  }

 private:
  RankState& own_;
  std::atomic<std::uint32_t>& sleepers_;
};

std::string name(std::size_t rank) { return "rank " + std::to_string(rank); }

}  // namespace

SharedMemoryCommunicator::SharedMemoryCommunicator(std::shared_ptr<RankMemory> memory, std::size_t rank,
                                                   WaitOptions options)
    : memory_(std::move(memory)),
      rank_(rank),
      num_tensor_ranks_(memory_->sizes().tensor_parallel_size),
      stage_start_(rank - rank % num_tensor_ranks_),
      options_(options),
      watch_(rank, memory_->sizes().world_size(), options.rank_timeout, longest_sleep),
      shared_sum_floats_(default_shared_sum_floats) {
  if (rank >= memory_->sizes().world_size()) {
    throw CommunicatorError(name(rank) + " is not one of the " + std::to_string(memory_->sizes().world_size()) + " ranks");
  }
  num_meetings_ = memory_->state(rank).arrived.load();
}

void SharedMemoryCommunicator::all_reduce(std::span<const float> x, std::span<float> y, const ParallelFor& parallel_for) {
  begin();
  const std::size_t piece_floats = memory_->buffer_floats();
  for (std::size_t begin = 0; begin < x.size(); begin += piece_floats) {
    const std::size_t size = std::min(piece_floats, x.size() - begin);
    give(x.subspan(begin, size), Meeting::all_reduce, x.size(), parallel_for);
    if (size < shared_sum_floats_) {
      sum_alone(y.subspan(begin, size), parallel_for);
    } else {
      sum_shared(x.size(), y.subspan(begin, size), parallel_for);
    }
    turn_ ^= 1;
  }
}

void SharedMemoryCommunicator::sum_alone(std::span<float> y, const ParallelFor& parallel_for) {
  in_float_tasks(y.size(), parallel_for,
           [&](std::size_t first, std::size_t last) { add_up(first, last, y.data() + first); });
}

void SharedMemoryCommunicator::sum_shared(std::size_t size, std::span<float> y, const ParallelFor& parallel_for) {
  const std::size_t share = (y.size() + num_tensor_ranks_ - 1) / num_tensor_ranks_;
  const auto start = [&](std::size_t rank) { return std::min(rank * share, y.size()); };
  const std::size_t mine = start(tensor_rank());
  float* const buffer = memory_->buffer(rank_, turn_);
  // Nobody else reads this rank's share of its buffer before the second meeting.
  in_float_tasks(start(tensor_rank() + 1) - mine, parallel_for, [&](std::size_t first, std::size_t last) {
    add_up(mine + first, mine + last, buffer + mine + first);
  });
  meet(Meeting::all_reduce, size);
  for (std::size_t rank = 0; rank < num_tensor_ranks_; ++rank) {
    const std::size_t begin = start(rank);
    const float* const from = memory_->buffer(stage_start_ + rank, turn_) + begin;
    in_float_tasks(start(rank + 1) - begin, parallel_for, [&](std::size_t first, std::size_t last) {
      copy_floats(from + first, last - first, y.data() + begin + first);
    });
  }
}

// y[i] = sum of the ranks' numbers at begin + i. `y` may be where one of them lies.
void SharedMemoryCommunicator::add_up(std::size_t begin, std::size_t end, float* y) const noexcept {
  const auto numbers = [&](std::size_t rank) { return memory_->buffer(stage_start_ + rank, turn_) + begin; };
  ordered_sum(num_tensor_ranks_, numbers, end - begin, y);
}

void SharedMemoryCommunicator::all_gather(std::span<const float> x, std::size_t num_rows, std::size_t root,
                                          std::span<float> y, std::size_t num_features, const ParallelFor& parallel_for) {
  begin();
  if (x.empty()) return;
  const std::size_t num_columns = x.size() / num_rows;
  const std::size_t piece_floats = memory_->buffer_floats();
  for (std::size_t begin = 0; begin < x.size(); begin += piece_floats) {
    const std::size_t size = std::min(piece_floats, x.size() - begin);
    give(x.subspan(begin, size), Meeting::all_gather, x.size(), parallel_for);
    for (std::size_t rank = 0; rank < num_tensor_ranks_ && tensor_rank() == root; ++rank) {
      gather_columns(memory_->buffer(stage_start_ + rank, turn_), begin, size, rank, num_columns, y, num_features);
    }
    turn_ ^= 1;
  }
}

void SharedMemoryCommunicator::send(std::span<const float> x) {
  begin();
  if (rank_ + num_tensor_ranks_ >= memory_->sizes().world_size()) {
    throw CommunicatorError(name(rank_) + " is of the last stage, and there is none to send to");
  }
  ChannelState& channel = memory_->channel(rank_);
  const auto num_slots = static_cast<std::uint32_t>(memory_->sizes().num_slots);
  const std::size_t receiver = rank_ + num_tensor_ranks_;
  std::size_t done = 0;
  do {  // a message without numbers is sent, too
    const std::uint32_t number = channel.sent.load(std::memory_order_relaxed);
    wait(channel.received, channel.received_sleepers, number + 1 - num_slots, receiver, "to receive");
    const std::size_t size = std::min(memory_->slot_floats(), x.size() - done);
    memory_->slot(rank_, number % num_slots) = {.message_floats = x.size(), .piece_floats = size};
    copy_floats(x.data() + done, size, memory_->slot_floats(rank_, number % num_slots));
    publish(channel.sent, channel.sent_sleepers, number + 1);
    done += size;
  } while (done < x.size());
}

void SharedMemoryCommunicator::receive(std::span<float> y) {
  begin();
  if (rank_ < num_tensor_ranks_) throw CommunicatorError(name(rank_) + " is of the first stage, and there is none before");
  const std::size_t sender = rank_ - num_tensor_ranks_;
  ChannelState& channel = memory_->channel(sender);
  const auto num_slots = static_cast<std::uint32_t>(memory_->sizes().num_slots);
  std::size_t done = 0;
  do {
    const std::uint32_t number = channel.received.load(std::memory_order_relaxed);
    wait(channel.sent, channel.sent_sleepers, number + 1, sender, "to send");
    const SlotHeader& slot = memory_->slot(sender, number % num_slots);
    if (slot.message_floats != y.size() || slot.piece_floats > y.size() - done) {
      memory_->fail(rank_, name(sender) + " has sent " + std::to_string(slot.message_floats) + " numbers, and " + name(rank_) +
                    " expects " + std::to_string(y.size()) + ": they compute different steps");
      throw_failure();
    }
    copy_floats(memory_->slot_floats(sender, number % num_slots), slot.piece_floats, y.data() + done);
    done += slot.piece_floats;
    publish(channel.received, channel.received_sleepers, number + 1);
  } while (done < y.size());
}

void SharedMemoryCommunicator::heartbeat() noexcept {
  memory_->state(rank_).heartbeat.fetch_add(1, std::memory_order_relaxed);
}

void SharedMemoryCommunicator::give(std::span<const float> piece, Meeting what, std::size_t size,
                                    const ParallelFor& parallel_for) {
  float* const buffer = memory_->buffer(rank_, turn_);
  in_float_tasks(piece.size(), parallel_for, [&](std::size_t first, std::size_t last) {
    copy_floats(piece.data() + first, last - first, buffer + first);
  });
  meet(what, size);
}

void SharedMemoryCommunicator::meet(Meeting what, std::size_t size) {
  const std::uint32_t number = ++num_meetings_;
  const std::uint64_t mine = encode_meeting(what, size);
  RankState& state = memory_->state(rank_);
  state.meeting[number % 2].store(mine, std::memory_order_relaxed);
  publish(state.arrived, state.sleepers, number);
  for (std::size_t rank = stage_start_; rank < stage_start_ + num_tensor_ranks_; ++rank) {
    if (rank == rank_) continue;
    RankState& other = memory_->state(rank);
    wait(other.arrived, other.sleepers, number, rank, "to meet it");
    check_meeting(rank, mine);
  }
}

void SharedMemoryCommunicator::check_meeting(std::size_t rank, std::uint64_t mine) {
  const std::uint64_t theirs = memory_->state(rank).meeting[num_meetings_ % 2].load(std::memory_order_relaxed);
  if (theirs == mine) return;
  memory_->fail(rank_, describe_difference(rank_, mine, rank, theirs));
  throw_failure();
}

void SharedMemoryCommunicator::wait(const std::atomic<std::uint32_t>& word, std::atomic<std::uint32_t>& sleepers,
                                    std::uint32_t target, std::size_t awaited, const char* what) {
  for (unsigned spin = 0; spin < options_.spins; ++spin) {
    if (reached(word.load(std::memory_order_acquire), target)) return;
    pause();
  }
  RankState& own = memory_->state(rank_);
  const auto signs = [&](std::size_t rank) { return memory_->state(rank).signs(); };
  watch_.begin(Clock::now());
  const Waiting waiting(own, sleepers, awaited);
  while (true) {
    const std::uint32_t value = word.load();
    if (reached(value, target)) return;
    if (memory_->has_failed()) throw_failure();
    if (const std::optional<std::size_t> stuck = watch_.look(Clock::now(), awaited, signs)) give_up(*stuck, what);
    futex_wait(word, value, std::min(longest_sleep, options_.rank_timeout));
    own.pulse.fetch_add(1, std::memory_order_relaxed);
  }
}

void SharedMemoryCommunicator::give_up(std::size_t rank, const char* what) {
  memory_->fail(rank_, describe_stuck(rank, options_, rank_, what));
  throw_failure();
}

void SharedMemoryCommunicator::throw_failure() const { throw CommunicatorError(memory_->failure()); }

void SharedMemoryCommunicator::begin() {
  heartbeat();
  if (memory_->has_failed()) throw_failure();
}

}  // namespace precast
