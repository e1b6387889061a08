// A pool whose threads wait by spinning, as ONNX Runtime's do while an engine is busy: a fork and join costs about a
// microsecond, so that what is measured is the kernel.
#pragma once

#include <atomic>
#include <cstddef>
#include <thread>
#include <vector>

#include "plugins/cpu/kernel.h"

namespace precast::bench {

class SpinningThreads {
 public:
  explicit SpinningThreads(std::size_t threads) {
    for (std::size_t t = 1; t < threads; ++t) helpers_.emplace_back([this] { help(); });
  }
  ~SpinningThreads() {
    stop_ = true;
    ++round_;
    for (std::thread& helper : helpers_) helper.join();
  }
  SpinningThreads(const SpinningThreads&) = delete;
  SpinningThreads& operator=(const SpinningThreads&) = delete;

  ParallelFor parallel_for() { return {&run, this, helpers_.size() + 1}; }

 private:
  static void run(void* self, std::size_t n, ParallelFor::Task task, void* context) {
    auto& pool = *static_cast<SpinningThreads*>(self);
    if (n == 1 || pool.helpers_.empty()) {
      for (std::size_t i = 0; i < n; ++i) task(context, i);
      return;
    }
    pool.task_ = task;
    pool.context_ = context;
    pool.num_tasks_ = n;
    pool.next_ = 0;
    pool.num_busy_ = pool.helpers_.size();
    ++pool.round_;  // publishes the above
    pool.work();
    while (pool.num_busy_ != 0) pause();
  }

  void work() {
    for (std::size_t i = next_++; i < num_tasks_; i = next_++) task_(context_, i);
  }

  void help() {
    std::size_t seen = 0;
    while (true) {
      while (round_ == seen) pause();
      ++seen;
      if (stop_) return;
      work();
      --num_busy_;
    }
  }

  static void pause() {
#ifdef PRECAST_X86
    __builtin_ia32_pause();
#endif
  }

  ParallelFor::Task task_ = nullptr;
  void* context_ = nullptr;
  std::size_t num_tasks_ = 0;
  std::atomic<std::size_t> next_{0};
  std::atomic<std::size_t> num_busy_{0};
  std::atomic<std::size_t> round_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> helpers_;  // last: they use the rest
};

}  // namespace precast::bench
