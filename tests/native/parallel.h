// Thread pools for tests of the kernels: real threads, and an order that no sensible pool would choose.
#pragma once

#include <atomic>
#include <cstddef>
#include <thread>
#include <vector>

#include "plugins/cpu/kernel.h"

namespace precast::test {

// Starts `threads` - 1 threads for each call, which all take tasks from one counter. Slow to start, simple to trust.
class ThreadsForTests {
 public:
  explicit ThreadsForTests(std::size_t threads) : threads_(threads) {}

  ParallelFor parallel_for() { return {&run, this, threads_}; }

 private:
  static void run(void* self, std::size_t n, ParallelFor::Task task, void* context) {
    std::atomic<std::size_t> next{0};
    const auto work = [&] {
      for (std::size_t i = next++; i < n; i = next++) task(context, i);
    };
    std::vector<std::thread> helpers;
    for (std::size_t t = 1; t < static_cast<ThreadsForTests*>(self)->threads_; ++t) helpers.emplace_back(work);
    work();
    for (std::thread& helper : helpers) helper.join();
  }

  std::size_t threads_;
};

// One thread, last task first, while claiming `claimed_threads`: finds tasks that rely on an order.
class BackwardsForTests {
 public:
  explicit BackwardsForTests(std::size_t claimed_threads) : claimed_threads_(claimed_threads) {}

  ParallelFor parallel_for() { return {&run, this, claimed_threads_}; }

 private:
  static void run(void*, std::size_t n, ParallelFor::Task task, void* context) {
    for (std::size_t i = n; i-- > 0;) task(context, i);
  }

  std::size_t claimed_threads_;
};

}  // namespace precast::test
