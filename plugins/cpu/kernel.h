// SPDX-License-Identifier: Apache-2.0
// What every op's kernels share: the instruction sets they come in, and how they spread work over threads.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string_view>
#include <type_traits>

#include "plugins/cpu/mxcsr.h"
#include "plugins/cpu/processor.h"

namespace precast {

// The sets of instructions that kernels are written for, each one with all of those before it. Results are the same,
// bit for bit, on every machine and for every batch within one level; between levels they may differ by rounding.
enum class KernelLevel {
  portable,  // standard C++: any processor
  avx2,      // x86-64 with AVX2, FMA and F16C
  avx512,    // and with AVX-512 F, BW, DQ, VL, VNNI and BF16
};

// All of them, ascending.
inline constexpr KernelLevel all_kernel_levels[] = {KernelLevel::portable, KernelLevel::avx2, KernelLevel::avx512};

// The first set of instructions that `level` needs and the processor lacks, as "AVX2"; empty where it lacks none.
std::string_view missing_feature(KernelLevel level, const ProcessorFeatures& processor = this_processor()) noexcept;

// Whether the processor can run `level`.
bool supports(KernelLevel level, const ProcessorFeatures& processor = this_processor()) noexcept;

// The highest level that the processor can run.
KernelLevel best_kernel_level(const ProcessorFeatures& processor = this_processor()) noexcept;

// "portable", "avx2" or "avx512", as PRECAST_KERNEL_LEVEL spells them.
std::string_view name(KernelLevel level) noexcept;

// The level with this name; nothing where no level has it.
std::optional<KernelLevel> parse_kernel_level(std::string_view name) noexcept;

// Runs f(0), f(1), ..., f(n - 1), possibly at the same time and in any order, and returns when all are done.
//
// Refers to whatever does the work (ONNX Runtime's pool, a loop, a test's threads) and does not own it: pass it down by
// reference and keep none. Tasks must not throw. Each task runs in the default floating-point environment, whatever the
// thread that runs it was set to: see FloatingPointScope.
class ParallelFor {
 public:
  using Task = void (*)(void* context, std::size_t index);
  // Calls task(context, i) once for each i in 0 .. n - 1.
  using Run = void (*)(void* backend, std::size_t n, Task task, void* context);

  // `threads` is how many tasks run at once.
  ParallelFor(Run run, void* backend, std::size_t threads) noexcept
      : run_(run), backend_(backend), threads_(threads) {}

  // Does everything in the calling thread, in ascending order.
  static ParallelFor serial() noexcept;

  template <typename F>
  void operator()(std::size_t n, F&& f) const {
    using Function = std::remove_reference_t<F>;
    if (n == 0) return;
    const Task task = [](void* context, std::size_t index) {
      const FloatingPointScope scope;
      (*static_cast<Function*>(context))(index);
    };
    run_(backend_, n, task, const_cast<void*>(static_cast<const void*>(std::addressof(f))));
  }

  // A hint for how finely to split work. It must never change a bit of any result.
  std::size_t threads() const noexcept { return threads_; }

 private:
  Run run_;
  void* backend_;
  std::size_t threads_;
};

}  // namespace precast
