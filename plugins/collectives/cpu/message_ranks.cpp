// SPDX-License-Identifier: Apache-2.0
#include "plugins/collectives/cpu/message_ranks.h"

#include <sched.h>

#include <algorithm>
#include <cstring>
#include <thread>
#include <utility>

namespace precast {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

constexpr std::uint32_t kind_signs = 1;
constexpr std::uint32_t kind_failure = 2;
constexpr std::uint32_t kind_log = 3;
constexpr std::size_t max_text_bytes = 900;  // with the header what every message passing takes in one go
constexpr milliseconds watch_interval{50};
constexpr milliseconds patience{5000};  // at the end, for what is still on its way

struct ControlHeader {
  std::uint32_t session;
  std::uint32_t kind;
  std::uint32_t level;  // of a log
  RankSigns signs;
};

// Between two looks of a rank that waits. Message passing makes progress while it is looked at, and a large message takes many
// looks, so that a rank that sleeps between them early is one whose messages are slow: 1 MiB over TCP took 12 ms, not 1.
void pause(microseconds waited) {
  if (waited < milliseconds(50)) {
    ::sched_yield();
  } else {
    std::this_thread::sleep_for(waited < milliseconds(1000) ? microseconds(50) : microseconds(500));
  }
}

}  // namespace

MessageRanks::MessageRanks(MessagePassing& messages, std::uint32_t session, WaitOptions options)
    : messages_(messages),
      rank_(messages.rank()),
      session_(session),
      options_(options),
      sign_interval_(std::max<Clock::duration>(options.rank_timeout / 8, milliseconds(5))),
      watch_(rank_, messages.num_ranks(), options.rank_timeout, watch_interval),
      signs_(messages.num_ranks()),
      said_(messages.num_ranks()) {}

MessageRanks::~MessageRanks() {
  // While one message is waited for, others are posted, and look() forgets those that were sent.
  while (!posted_.empty()) {
    std::list<Posted> left = std::exchange(posted_, {});
    for (Posted& posted : left) {
      if (!finish(posted.request)) messages_.keep(std::make_shared<std::vector<std::byte>>(std::move(posted.bytes)));
    }
  }
}

bool MessageRanks::finish(MessagePassing::Request& request) noexcept {
  if (request == nullptr) return true;
  try {
    const Clock::time_point start = Clock::now();
    if (!end_) end_ = start + std::min(patience, options_.rank_timeout);
    while (true) {
      if (messages_.test(request)) return true;
      const Clock::time_point now = Clock::now();
      if (has_failed_ || now >= *end_) break;
      pause(std::chrono::duration_cast<microseconds>(now - start));
      heartbeat();  // others may wait for what this rank computes next
      look();       // whether others have failed
    }
  } catch (const std::exception&) {
    // Given up by message passing itself, or without memory to ask again.
  }
  if (request != nullptr) messages_.abandon(request);
  return false;
}

void MessageRanks::heartbeat() noexcept {
  ++own_.progress;
  try {
    show_signs(Clock::now());
  } catch (const std::exception& error) {
    fail("rank " + std::to_string(rank_) + " cannot tell the others that it lives: " + error.what());
  }
}

void MessageRanks::fail(std::string_view reason) noexcept {
  if (has_failed_) return;
  set_failure(reason);
  for (std::size_t to = 0; to < messages_.num_ranks(); ++to) {
    if (to == rank_) continue;
    try {
      post_control(to, kind_failure, 0, reason);
    } catch (const std::exception&) {
      // It finds out by itself: this rank makes no progress any more.
    }
  }
}

void MessageRanks::set_failure(std::string_view reason) noexcept {
  if (has_failed_) return;
  failure_ = reason;
  has_failed_ = true;
}

void MessageRanks::throw_failure() const { throw CommunicatorError(failure_); }

void MessageRanks::begin() {
  heartbeat();
  // Not more often than others have something new to say: a look costs as much as a small message.
  if (const Clock::time_point now = Clock::now(); now - last_look_ >= std::min<Clock::duration>(sign_interval_, watch_interval)) {
    last_look_ = now;
    look();
  }
  if (has_failed_) throw_failure();
}

void MessageRanks::look() {
  try {
    while (const std::optional<MessagePassing::Envelope> envelope = messages_.probe(message_tag::control)) {
      read_control(*envelope);
    }
    forget_sent();
  } catch (const MessageError& error) {
    fail("rank " + std::to_string(rank_) + " cannot hear the other ranks: " + error.what());
  }
}

void MessageRanks::read_control(const MessagePassing::Envelope& envelope) {
  std::vector<std::byte> bytes(envelope.num_bytes);
  MessagePassing::Request request = messages_.start_receive(envelope.from, message_tag::control, bytes);
  while (!messages_.test(request)) {  // it has come already
  }
  ControlHeader header;
  if (bytes.size() < sizeof header) return;
  std::memcpy(&header, bytes.data(), sizeof header);
  // A rank that is still busy with an engine that is no more is alive.
  signs_[envelope.from].progress += header.signs.progress != said_[envelope.from].progress;
  signs_[envelope.from].pulse += header.signs.pulse != said_[envelope.from].pulse;
  signs_[envelope.from].waits_for = header.session == session_ ? header.signs.waits_for : 0;
  said_[envelope.from] = header.signs;
  if (header.session != session_) return;
  const std::string text(reinterpret_cast<const char*>(bytes.data()) + sizeof header, bytes.size() - sizeof header);
  if (header.kind == kind_failure) set_failure(text);
  if (header.kind == kind_log && on_log) on_log(envelope.from, header.level, text);
}

void MessageRanks::post(std::size_t to, int tag, std::span<const std::byte> bytes) {
  Posted& posted = posted_.emplace_back(Posted{.bytes = {bytes.begin(), bytes.end()}});
  posted.request = messages_.start_send(to, tag, posted.bytes);
}

void MessageRanks::post_control(std::size_t to, std::uint32_t kind, std::uint32_t level, std::string_view text) {
  const ControlHeader header{.session = session_, .kind = kind, .level = level, .signs = own_};
  text = text.substr(0, max_text_bytes);
  std::vector<std::byte> bytes(sizeof header + text.size());
  std::memcpy(bytes.data(), &header, sizeof header);
  if (!text.empty()) std::memcpy(bytes.data() + sizeof header, text.data(), text.size());
  post(to, message_tag::control, bytes);
}

void MessageRanks::post_log(std::uint32_t level, std::string_view text) { post_control(0, kind_log, level, text); }

void MessageRanks::show_signs(Clock::time_point now) {
  if (now - last_shown_ < sign_interval_) return;
  last_shown_ = now;
  forget_sent();
  // Who does not read what it is sent is not sent more and more of it.
  if (posted_.size() > 16 * messages_.num_ranks()) return;
  for (std::size_t to = 0; to < messages_.num_ranks(); ++to) {
    if (to != rank_) post_control(to, kind_signs, 0, {});
  }
}

void MessageRanks::forget_sent() {
  for (auto posted = posted_.begin(); posted != posted_.end();) {
    posted = posted->request == nullptr || messages_.test(posted->request) ? posted_.erase(posted) : std::next(posted);
  }
}

void MessageRanks::wait(std::size_t awaited, const char* what, bool (*done)(void*), void* context) {
  try {
    for (unsigned spin = 0; spin <= options_.spins / 8; ++spin) {  // a look takes longer than one at shared memory
      if (done(context)) return;
    }
    const Clock::time_point start = Clock::now();
    watch_.begin(start);
    own_.waits_for = static_cast<std::uint32_t>(awaited) + 1;
    while (!done(context)) {
      look();
      if (has_failed_) break;
      const Clock::time_point now = Clock::now();
      ++own_.pulse;
      show_signs(now);
      if (const auto stuck = watch_.look(now, awaited, [&](std::size_t rank) { return signs_[rank]; })) {
        fail(describe_stuck(*stuck, options_, rank_, what));
        break;
      }
      pause(std::chrono::duration_cast<microseconds>(now - start));
    }
    own_.waits_for = 0;
    ++own_.progress;
  } catch (const MessageError& error) {
    own_.waits_for = 0;
    fail("rank " + std::to_string(rank_) + " waited for rank " + std::to_string(awaited) + " " + what + ": " + error.what());
  }
  if (has_failed_) throw_failure();
}

MessagePassing::Request MessageRanks::start_send(std::size_t to, int tag, std::span<const std::byte> bytes) {
  try {
    return messages_.start_send(to, tag, bytes);
  } catch (const MessageError& error) {
    fail("rank " + std::to_string(rank_) + " and rank " + std::to_string(to) + ": " + error.what());
    throw_failure();
  }
}

MessagePassing::Request MessageRanks::start_receive(std::size_t from, int tag, std::span<std::byte> bytes) {
  try {
    return messages_.start_receive(from, tag, bytes);
  } catch (const MessageError& error) {
    fail("rank " + std::to_string(rank_) + " and rank " + std::to_string(from) + ": " + error.what());
    throw_failure();
  }
}

std::size_t MessageRanks::wait_for(MessagePassing::Request& request, std::size_t awaited, const char* what) {
  std::size_t num_bytes = 0;
  wait_until(awaited, what, [&] {
    const std::optional<std::size_t> received = messages_.test(request);
    num_bytes = received.value_or(0);
    return received.has_value();
  });
  return num_bytes;
}

}  // namespace precast
