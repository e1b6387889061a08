#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <stop_token>
#include <thread>
#include <utility>

#include "plugins/collectives/cpu/communicator.h"

namespace precast {

/// Calls a function in a thread of its own every so often, until it is destroyed, which does not wait for the next time.
class Regularly {
 public:
  template <typename F>
  Regularly(std::chrono::milliseconds interval, F&& call)
      : thread_([interval, call = std::forward<F>(call)](const std::stop_token& stop) {
          std::mutex mutex;
          std::condition_variable_any never;
          for (std::unique_lock lock(mutex); !stop.stop_requested();) {
            call();
            never.wait_for(lock, stop, interval, [] { return false; });
          }
        }) {}

 private:
  std::jthread thread_;
};

/// While it exists, a rank that loads, which may take long from a slow disk, shows that it lives.
class SignOfLife {
 public:
  explicit SignOfLife(Communicator& communicator)
      : beats_(std::chrono::milliseconds(50), [&communicator] { communicator.heartbeat(); }) {}

 private:
  Regularly beats_;
};

/// Shows that a rank lives during calls that may rightly take long and cannot show it themselves, but only so long: one
/// that never returns is found out in the end.
class SignOfCalls {
 public:
  /// `interval`: less than half of what others wait for a sign. It costs a wake-up each, during calls or not.
  SignOfCalls(Communicator& communicator, std::chrono::milliseconds interval, std::chrono::milliseconds longest_call)
      : beats_(interval, [this, &communicator, longest_call] {
          const Clock::rep begin = begin_.load();
          if (begin != none && Clock::now().time_since_epoch().count() - begin < Clock::duration(longest_call).count()) {
            communicator.heartbeat();
          }
        }) {}

  /// What `call` returns or throws.
  template <typename F>
  decltype(auto) during(F&& call) {
    const Scope scope(begin_);
    return std::forward<F>(call)();
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr Clock::rep none = 0;

  struct Scope {
    explicit Scope(std::atomic<Clock::rep>& begin) : begin_(begin) { begin_ = Clock::now().time_since_epoch().count(); }
    ~Scope() { begin_ = none; }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

    std::atomic<Clock::rep>& begin_;
  };

  std::atomic<Clock::rep> begin_ = none;  ///< of the call that runs
  Regularly beats_;
};

}  // namespace precast
