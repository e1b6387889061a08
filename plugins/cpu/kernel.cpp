// SPDX-License-Identifier: Apache-2.0
#include "plugins/cpu/kernel.h"

namespace precast {
namespace {

// A level needs its own features and those of every level before it.
struct Requirement {
  KernelLevel level;
  bool ProcessorFeatures::*feature;
  std::string_view name;
};

constexpr Requirement requirements[] = {
    {KernelLevel::avx2, &ProcessorFeatures::avx2, "AVX2"},
    {KernelLevel::avx2, &ProcessorFeatures::fma, "FMA"},
    {KernelLevel::avx2, &ProcessorFeatures::f16c, "F16C"},
    {KernelLevel::avx512, &ProcessorFeatures::avx512f, "AVX512F"},
    {KernelLevel::avx512, &ProcessorFeatures::avx512bw, "AVX512BW"},
    {KernelLevel::avx512, &ProcessorFeatures::avx512dq, "AVX512DQ"},
    {KernelLevel::avx512, &ProcessorFeatures::avx512vl, "AVX512VL"},
    {KernelLevel::avx512, &ProcessorFeatures::avx512vnni, "AVX512_VNNI"},
    {KernelLevel::avx512, &ProcessorFeatures::avx512bf16, "AVX512_BF16"},
};

void run_serially(void* /*backend*/, std::size_t n, ParallelFor::Task task, void* context) {
  for (std::size_t i = 0; i < n; ++i) task(context, i);
}

}  // namespace

std::string_view missing_feature(KernelLevel level, const ProcessorFeatures& processor) noexcept {
  for (const Requirement& requirement : requirements) {
    if (requirement.level <= level && !(processor.*requirement.feature)) return requirement.name;
  }
  return {};
}

bool supports(KernelLevel level, const ProcessorFeatures& processor) noexcept {
  return missing_feature(level, processor).empty();
}

KernelLevel best_kernel_level(const ProcessorFeatures& processor) noexcept {
  KernelLevel best = KernelLevel::portable;
  for (const KernelLevel level : all_kernel_levels) {
    if (supports(level, processor)) best = level;
  }
  return best;
}

std::string_view name(KernelLevel level) noexcept {
  switch (level) {
    case KernelLevel::portable: return "portable";
    case KernelLevel::avx2: return "avx2";
    case KernelLevel::avx512: return "avx512";
  }
  return "unknown";
}

std::optional<KernelLevel> parse_kernel_level(std::string_view text) noexcept {
  for (const KernelLevel level : all_kernel_levels) {
    if (name(level) == text) return level;
  }
  return std::nullopt;
}

ParallelFor ParallelFor::serial() noexcept { return {&run_serially, nullptr, 1}; }

}  // namespace precast
