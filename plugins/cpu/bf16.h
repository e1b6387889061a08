// SPDX-License-Identifier: Apache-2.0
// bfloat16: the upper half of an fp32.
//
// Functions here are static so that a source compiled for one kernel level keeps its own copy: an inline function's
// copies are merged by the linker, and the survivor could hold instructions that this processor lacks.
#pragma once

#include <bit>
#include <cstdint>

namespace precast {

struct Bf16 {
  std::uint16_t bits;
};

[[maybe_unused]] static inline float to_float(Bf16 value) noexcept {
  return std::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16);
}

// Rounds to nearest, ties to even; too large gives infinity. A NaN stays a NaN: its sign and upper payload are kept and
// it becomes quiet, as in VCVTNEPS2BF16. Unlike that instruction it keeps subnormal numbers.
[[maybe_unused]] static inline Bf16 round_to_bf16(float value) noexcept {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const std::uint32_t quiet = (bits >> 16) | 0x0040u;
  const bool is_nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
  return Bf16{static_cast<std::uint16_t>(is_nan ? quiet : rounded)};
}

}  // namespace precast
