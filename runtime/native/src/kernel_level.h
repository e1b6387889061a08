#pragma once

#include <string>

#include "plugins/cpu/kernel.h"

namespace precast {

/// The kernel level named by `wanted`; where that is "", by the environment variable PRECAST_KERNEL_LEVEL; where that
/// is not set either, the best level of the processor. Throws Error(invalid_argument) for a name that is no level, or one
/// that the processor cannot run.
KernelLevel choose_kernel_level(const std::string& wanted, const ProcessorFeatures& processor = this_processor());

}  // namespace precast
