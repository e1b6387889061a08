// Waiting that ends: an engine that is broken must fail its test, not hang it.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>

namespace precast::test {

/// Far more than anything takes that a test waits for.
inline constexpr std::chrono::seconds patience{10};
inline constexpr std::int64_t patience_ns = std::chrono::nanoseconds(patience).count();

/// False: not within `patience`.
template <typename Condition>
bool comes_true(Condition&& condition) {
  const auto end = std::chrono::steady_clock::now() + patience;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::yield();
  }
  return true;
}

/// Where the engine's thread waits until the test lets it go on. It goes on after `patience` in any case: a test that fails
/// opens no gate any more, and the engine that it leaves behind waits for its thread.
class Gate {
 public:
  explicit Gate(bool is_open) : is_open_(is_open) {}

  void open() { set(true); }
  void close() { set(false); }

  void pass() {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, patience, [this] { return is_open_; });
  }

 private:
  void set(bool is_open) {
    const std::lock_guard lock(mutex_);
    is_open_ = is_open;
    changed_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  bool is_open_;
};

}  // namespace precast::test
