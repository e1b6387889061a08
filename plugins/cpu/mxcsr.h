// SPDX-License-Identifier: Apache-2.0
// The floating-point environment that kernels compute in.
#pragma once

#include <cstdint>

namespace precast {

// For its lifetime this thread rounds to nearest even, keeps subnormal numbers (no FTZ, no DAZ) and traps on nothing,
// so that a result does not depend on what the host program did to the thread. Then what was set comes back; exception
// flags raised meanwhile are dropped.
//
// ParallelFor makes one around each task; code that computes outside a task makes its own.
class FloatingPointScope {
 public:
  FloatingPointScope() noexcept;
  ~FloatingPointScope();
  FloatingPointScope(const FloatingPointScope&) = delete;
  FloatingPointScope& operator=(const FloatingPointScope&) = delete;

 private:
  std::uint64_t saved_;  // MXCSR on x86-64, FPCR on AArch64
};

}  // namespace precast
