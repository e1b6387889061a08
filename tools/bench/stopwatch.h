// Time that a program can be held to on a busy machine.
#pragma once

#include <ctime>

namespace precast::bench {

// With one thread, the time that this thread was given: other programs cannot add to it (they still take their part of
// caches and memory bandwidth). With several threads, the time of day.
class Stopwatch {
 public:
  explicit Stopwatch(bool one_thread)
      : clock_(one_thread ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC), start_(seconds_now()) {}

  double seconds() const { return seconds_now() - start_; }

 private:
  double seconds_now() const {
    timespec now{};
    clock_gettime(clock_, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
  }

  clockid_t clock_;
  double start_;
};

}  // namespace precast::bench
