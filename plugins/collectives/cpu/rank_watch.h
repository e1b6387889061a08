// SPDX-License-Identifier: Apache-2.0
// Whom a rank waits for in vain.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

namespace precast {

// What others see of a rank. Counters wrap around.
struct RankSigns {
  std::uint32_t progress = 0;   // counts up while the rank does anything but wait for another rank
  std::uint32_t pulse = 0;      // counts up while it waits for another rank
  std::uint32_t waits_for = 0;  // a rank, plus 1; 0: for none
};

// Tells a rank that is slow from one that is stuck, for a rank that waits.
//
// A rank that waits for another one is not to blame: the one at the end of such a chain is. Unless it only says that it
// waits: a process that is stopped says so for ever, but has no pulse, and the chain ends with it.
class RankWatch {
 public:
  using Clock = std::chrono::steady_clock;

  // Of `rank`, which looks about every `interval` while it waits.
  RankWatch(std::size_t rank, std::size_t world_size, std::chrono::milliseconds rank_timeout,
            std::chrono::milliseconds interval)
      : rank_(rank), timeout_(rank_timeout), longest_look_(4 * interval), seen_(world_size) {}

  // A wait begins.
  void begin(Clock::time_point now) noexcept {
    ++wait_;
    last_look_ = now;
  }

  // The rank at the end of the chain that begins with `awaited`, if it has made no progress for the timeout; `signs(rank)`
  // are a rank's at this moment. Time in which this rank itself did not look is not counted: the whole machine may have been
  // asleep.
  template <typename Signs>
  std::optional<std::size_t> look(Clock::time_point now, std::size_t awaited, Signs&& signs) {
    waited_ += std::min<Clock::duration>(now - std::exchange(last_look_, now), longest_look_);
    std::size_t last = awaited;
    for (std::size_t i = 0; i <= seen_.size(); ++i) {
      const RankSigns shown = signs(last);
      const Seen& seen = note(last, shown);
      const bool is_waiting = shown.waits_for != 0 && waited_ - seen.pulse_at < timeout_ / 2;
      const std::size_t next = shown.waits_for - std::size_t{1};
      // A circle ends before it closes.
      if (!is_waiting || next == rank_ || next == awaited || i == seen_.size()) {
        return waited_ - seen.progress_at >= timeout_ ? std::optional(last) : std::nullopt;
      }
      last = next;
    }
    return std::nullopt;
  }

 private:
  struct Seen {
    std::uint64_t wait = 0;  // in which it was looked at
    RankSigns signs{};
    Clock::duration progress_at{};  // when its counters were first seen as they are
    Clock::duration pulse_at{};
  };

  const Seen& note(std::size_t rank, const RankSigns& signs) {
    Seen& seen = seen_[rank];
    const bool is_new = seen.wait != wait_;
    if (is_new || seen.signs.progress != signs.progress) seen.progress_at = seen.pulse_at = waited_;
    if (seen.signs.pulse != signs.pulse) seen.pulse_at = waited_;
    seen.wait = wait_;
    seen.signs = signs;
    return seen;
  }

  const std::size_t rank_;
  const Clock::duration timeout_;
  const Clock::duration longest_look_;
  std::uint64_t wait_ = 0;
  Clock::duration waited_{};  // over all waits
  Clock::time_point last_look_{};
  std::vector<Seen> seen_;  // by rank
};

}  // namespace precast
