// SPDX-License-Identifier: Apache-2.0
#include "plugins/cpu/mxcsr.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#elif !defined(__aarch64__)
#error "FloatingPointScope: say here how this processor's floating-point control register is read and written"
#endif

namespace precast {
namespace {

#if defined(__x86_64__)
constexpr std::uint64_t default_control = 0x1F80;  // every exception masked, round to nearest even, no FTZ, no DAZ
std::uint64_t read_control() { return _mm_getcsr(); }
void write_control(std::uint64_t value) { _mm_setcsr(static_cast<unsigned>(value)); }
#else
constexpr std::uint64_t default_control = 0;  // the same, on AArch64
std::uint64_t read_control() {
  std::uint64_t value;
  asm volatile("mrs %0, fpcr" : "=r"(value));
  return value;
}
void write_control(std::uint64_t value) { asm volatile("msr fpcr, %0" : : "r"(value)); }
#endif

}  // namespace

FloatingPointScope::FloatingPointScope() noexcept : saved_(read_control()) { write_control(default_control); }

FloatingPointScope::~FloatingPointScope() { write_control(saved_); }

}  // namespace precast
