// Message passing between threads, for tests of what is built on it.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>
#include <vector>

#include "plugins/collectives/cpu/message_passing.h"

namespace precast::test {

// What the ranks of one test send each other.
class FakeNetwork {
 public:
  explicit FakeNetwork(std::size_t num_ranks) : num_ranks_(num_ranks), receivers_(num_ranks) {}

  std::size_t num_ranks() const noexcept { return num_ranks_; }

  // From now on messages of this rank go nowhere, and its sends are never done.
  void cut(std::size_t rank) {
    const std::lock_guard lock(mutex_);
    cut_.push_back(rank);
  }

 private:
  friend class FakeMessages;

  struct Message {
    std::size_t from;
    int tag;
    std::vector<std::byte> bytes;
  };

  const std::size_t num_ranks_;
  std::mutex mutex_;
  std::vector<std::deque<Message>> receivers_;
  std::vector<std::size_t> cut_;
};

class FakeMessages final : public MessagePassing {
 public:
  FakeMessages(FakeNetwork& network, std::size_t rank) : network_(network), rank_(rank) {}

  std::size_t rank() const noexcept override { return rank_; }
  std::size_t num_ranks() const noexcept override { return network_.num_ranks_; }

  ~FakeMessages() override { send_started(); }

  // A message leaves with the sender's next call: what was given to a send is read late, as it may be, and must not have
  // changed until then.
  Request start_send(std::size_t to, int tag, std::span<const std::byte> bytes) override {
    send_started();
    auto* const started = new Started{.other = to, .tag = tag, .bytes = bytes, .copy = {bytes.begin(), bytes.end()}};
    started_.push_back(started);
    return started;
  }

  Request start_receive(std::size_t from, int tag, std::span<std::byte> room) override {
    send_started();
    return new Started{.is_receive = true, .other = from, .tag = tag, .room = room};
  }

  std::optional<std::size_t> test(Request& request) override {
    send_started();
    auto* const started = static_cast<Started*>(request);
    const std::lock_guard lock(network_.mutex_);
    std::size_t num_bytes = 0;
    if (started->is_receive) {
      auto& queue = network_.receivers_[rank_];
      const auto message = std::ranges::find_if(
          queue, [&](const auto& each) { return each.from == started->other && each.tag == started->tag; });
      if (message == queue.end()) return std::nullopt;
      num_bytes = message->bytes.size();
      if (num_bytes > started->room.size()) throw MessageError("a message is longer than its receiver has room for");
      if (num_bytes != 0) std::memcpy(started->room.data(), message->bytes.data(), num_bytes);
      queue.erase(message);
    } else if (!started->is_sent || ++started->num_tests % 3 != 0) {
      return std::nullopt;  // seldom done at once
    }
    delete started;
    request = nullptr;
    return num_bytes;
  }

  std::optional<Envelope> probe(int tag, std::optional<std::size_t> from) override {
    send_started();
    const std::lock_guard lock(network_.mutex_);
    for (const auto& message : network_.receivers_[rank_]) {
      if (message.tag == tag && (!from || message.from == *from)) return Envelope{message.from, message.bytes.size()};
    }
    return std::nullopt;
  }

  void abandon(Request& request) noexcept override {
    auto* const started = static_cast<Started*>(request);
    std::erase(started_, started);
    delete started;
    request = nullptr;
  }

 private:
  struct Started {
    bool is_receive = false;
    bool is_sent = false;
    int num_tests = 0;
    std::size_t other = 0;
    int tag = 0;
    std::span<const std::byte> bytes{};
    std::vector<std::byte> copy{};
    std::span<std::byte> room{};
  };

  void send_started() {
    const std::lock_guard lock(network_.mutex_);
    if (std::ranges::count(network_.cut_, rank_) != 0) return;
    for (Started* const each : started_) {
      if (!std::ranges::equal(each->bytes, each->copy)) std::abort();  // written to while it was on its way
      network_.receivers_[each->other].push_back({rank_, each->tag, std::move(each->copy)});
      each->is_sent = true;
    }
    started_.clear();
  }

  FakeNetwork& network_;
  const std::size_t rank_;
  std::vector<Started*> started_;
};

}  // namespace precast::test
