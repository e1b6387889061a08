// SPDX-License-Identifier: Apache-2.0
#include "plugins/cpu/kernel.h"

namespace precast {
namespace {

struct Named {
  KernelLevel level;
  std::string_view name;
};

constexpr Named levels[] = {{KernelLevel::portable, "portable"}, {KernelLevel::avx512, "avx512"}};

// The compiler's run time asks CPUID, and XGETBV for whether the operating system saves the wide registers.
bool has_avx512() noexcept {
#ifdef PRECAST_X86
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16") &&
         __builtin_cpu_supports("fma");
#else
  return false;
#endif
}

void run_serially(void* /*backend*/, std::size_t n, ParallelFor::Task task, void* context) {
  for (std::size_t i = 0; i < n; ++i) task(context, i);
}

}  // namespace

bool supports(KernelLevel level) noexcept { return level == KernelLevel::portable || has_avx512(); }

KernelLevel best_kernel_level() noexcept {
  return supports(KernelLevel::avx512) ? KernelLevel::avx512 : KernelLevel::portable;
}

std::string_view name(KernelLevel level) noexcept {
  for (const Named& named : levels) {
    if (named.level == level) return named.name;
  }
  return "unknown";
}

std::optional<KernelLevel> parse_kernel_level(std::string_view text) noexcept {
  for (const Named& named : levels) {
    if (named.name == text) return named.level;
  }
  return std::nullopt;
}

ParallelFor ParallelFor::serial() noexcept { return {&run_serially, nullptr, 1}; }

}  // namespace precast
