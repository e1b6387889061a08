// runtime/native/src/kernel_level.h: which level an engine is loaded with, and what is refused.
#include "runtime/native/src/kernel_level.h"

#include <string>

#include "runtime/native/src/error.h"
#include "tests/native/check.h"
#include "tests/native/environment_scope.h"

namespace precast {
namespace {

using test::EnvironmentScope;

constexpr ProcessorFeatures haswell{.avx2 = true, .fma = true, .f16c = true};

constexpr const char* variable = "PRECAST_KERNEL_LEVEL";

std::string refusal(const std::string& wanted, const ProcessorFeatures& processor) {
  try {
    choose_kernel_level(wanted, processor);
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::invalid_argument);
    return error.what();
  }
  return {};
}

TEST("kernel level: the option goes before the environment, and that before the best") {
  const EnvironmentScope unset(variable, "");
  CHECK(choose_kernel_level("", haswell) == KernelLevel::avx2);
  CHECK(choose_kernel_level("", ProcessorFeatures{}) == KernelLevel::portable);
  const EnvironmentScope set(variable, "portable");
  CHECK(choose_kernel_level("", haswell) == KernelLevel::portable);
  CHECK(choose_kernel_level("avx2", haswell) == KernelLevel::avx2);
}

TEST("kernel level: one that the processor lacks is refused, with what is missing and what would run") {
  CHECK_EQ(refusal("avx512", haswell),
           "kernel_level is \"avx512\", which this processor cannot run, for it has no AVX512F; its best is avx2");
  const EnvironmentScope set(variable, "avx2");
  CHECK_EQ(refusal("", ProcessorFeatures{}),
           "PRECAST_KERNEL_LEVEL is \"avx2\", which this processor cannot run, for it has no AVX2; its best is "
           "portable");
}

TEST("kernel level: a name that is none is refused with those there are") {
  CHECK_EQ(refusal("sse2", haswell), "kernel_level is \"sse2\"; the levels are portable, avx2 and avx512");
}

}  // namespace
}  // namespace precast
