// SPDX-License-Identifier: Apache-2.0
// Ranks that see of each other only what messages say.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "plugins/collectives/cpu/communicator.h"
#include "plugins/collectives/cpu/message_passing.h"
#include "plugins/collectives/cpu/rank_watch.h"
#include "plugins/collectives/cpu/wait_options.h"

namespace precast {

// What messages between ranks are about.
namespace message_tag {
inline constexpr int meeting = 1;   // AllReduce, AllGather
inline constexpr int pipeline = 2;  // Send, Receive
inline constexpr int control = 3;   // of MessageRanks
inline constexpr int order = 4;     // of rank 0, to the others
inline constexpr int reply = 5;     // to rank 0
inline constexpr int logits = 6;    // to rank 0
inline constexpr int end = 7;       // to rank 0, of a rank that was told to end and does
}  // namespace message_tag

// A message to or from another rank that is on its way.
struct MessageTransfer {
  MessagePassing::Request request = nullptr;
  std::size_t other = 0;
};

// One rank among those of an engine: waits for the others with a deadline, tells them that it lives, and that it has failed.
//
// A rank that computes or waits tells all others so, eight times in rank_timeout, so that each of them can tell who is stuck
// (RankWatch). One that has nothing to do is silent: nobody waits for it.
class MessageRanks {
 public:
  // `session`: of the engine, among those that the same processes have run one after another.
  MessageRanks(MessagePassing& messages, std::uint32_t session, WaitOptions options);
  MessageRanks(const MessageRanks&) = delete;
  MessageRanks& operator=(const MessageRanks&) = delete;
  // Waits for a moment for what was posted.
  ~MessageRanks();

  MessagePassing& messages() noexcept { return messages_; }
  std::size_t rank() const noexcept { return rank_; }

  void heartbeat() noexcept;

  // Makes every wait of every rank end with this reason, now and from now on; the first one that a rank hears of stays.
  void fail(std::string_view reason) noexcept;
  bool has_failed() const noexcept { return has_failed_; }
  const std::string& failure() const noexcept { return failure_; }
  [[noreturn]] void throw_failure() const;

  // Of every collective: shows that the rank lives, looks what the others say, and throws if the ranks have failed.
  void begin();

  // Looks what the others say: of failures, of themselves, and for the log.
  void look();

  // Returns when done() is true, which rank `awaited` makes it, or throws CommunicatorError. `what` says what it is awaited
  // for: "to send".
  template <typename Done>
  void wait_until(std::size_t awaited, const char* what, Done&& done) {
    const auto is_done = [](void* context) { return (*static_cast<std::remove_reference_t<Done>*>(context))(); };
    wait(awaited, what, is_done, std::addressof(done));
  }

  // As of MessagePassing; what goes wrong fails all ranks, and throws CommunicatorError.
  MessagePassing::Request start_send(std::size_t to, int tag, std::span<const std::byte> bytes);
  MessagePassing::Request start_receive(std::size_t from, int tag, std::span<std::byte> bytes);

  // The number of bytes received, once the request is done.
  std::size_t wait_for(MessagePassing::Request& request, std::size_t awaited, const char* what);

  // At the end of what owns `bytes`, which `transfers` read or write: waits for them for as long as the other ranks are well,
  // since a message that is given up may never arrive. Where they are not, message passing keeps the bytes.
  template <typename Bytes>
  void give_back(std::vector<MessageTransfer>& transfers, Bytes& bytes) noexcept {
    bool is_whole = true;
    for (MessageTransfer& transfer : transfers) is_whole &= finish(transfer.request);
    if (!is_whole) messages_.keep(std::make_shared<Bytes>(std::move(bytes)));
    transfers.clear();
  }

  // Sends a copy, and waits for nothing.
  void post(std::size_t to, int tag, std::span<const std::byte> bytes);

  // A message for rank 0's log, which is told to `on_log` there: from, level, text.
  void post_log(std::uint32_t level, std::string_view text);
  std::function<void(std::size_t, std::uint32_t, std::string)> on_log;

 private:
  using Clock = std::chrono::steady_clock;
  struct Posted {
    std::vector<std::byte> bytes;
    MessagePassing::Request request = nullptr;
  };

  void wait(std::size_t awaited, const char* what, bool (*done)(void*), void* context);
  // Whether it was done in time, or had been; otherwise it is given up.
  bool finish(MessagePassing::Request& request) noexcept;
  void post_control(std::size_t to, std::uint32_t kind, std::uint32_t level, std::string_view text);
  void read_control(const MessagePassing::Envelope& envelope);
  void show_signs(Clock::time_point now);
  void forget_sent();
  void set_failure(std::string_view reason) noexcept;

  MessagePassing& messages_;
  const std::size_t rank_;
  const std::uint32_t session_;
  const WaitOptions options_;
  const Clock::duration sign_interval_;
  RankWatch watch_;
  RankSigns own_{};
  std::vector<RankSigns> signs_;  // of every rank
  std::vector<RankSigns> said_;   // what it has last said, counted from the start of its engine
  std::list<Posted> posted_;
  Clock::time_point last_shown_{};
  Clock::time_point last_look_{};
  std::optional<Clock::time_point> end_;  // of the patience with what is on its way, at the end
  bool has_failed_ = false;
  std::string failure_;
};

}  // namespace precast
