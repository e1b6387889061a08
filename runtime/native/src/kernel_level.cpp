#include "runtime/native/src/kernel_level.h"

#include <cstdlib>
#include <optional>

#include "runtime/native/src/concat.h"
#include "runtime/native/src/error.h"

namespace precast {
namespace {

KernelLevel parse(const std::string& text, const char* source, const ProcessorFeatures& processor) {
  const std::optional<KernelLevel> level = parse_kernel_level(text);
  if (!level) {
    throw Error(ErrorCode::invalid_argument,
                concat(source, " is ", quote(text), "; the levels are ", name(KernelLevel::portable), ", ",
                       name(KernelLevel::avx2), " and ", name(KernelLevel::avx512)));
  }
  if (!supports(*level, processor)) {
    throw Error(ErrorCode::invalid_argument,
                concat(source, " is ", quote(text), ", which this processor cannot run, for it has no ",
                       missing_feature(*level, processor), "; its best is ", name(best_kernel_level(processor))));
  }
  return *level;
}

}  // namespace

KernelLevel choose_kernel_level(const std::string& wanted, const ProcessorFeatures& processor) {
  if (!wanted.empty()) return parse(wanted, "kernel_level", processor);
  const char* const from_environment = std::getenv("PRECAST_KERNEL_LEVEL");
  if (from_environment != nullptr && *from_environment != '\0') {
    return parse(from_environment, "PRECAST_KERNEL_LEVEL", processor);
  }
  return best_kernel_level(processor);
}

}  // namespace precast
