// SPDX-License-Identifier: Apache-2.0
// The compiler's vector intrinsics, for kernels of level avx512. Only files named *_avx512.cpp include this.
#pragma once

#include <cstddef>

// GCC 12 takes the undefined values that its own header passes to masked instructions for a mistake of ours (GCC bug
// 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

namespace precast {

// The first `count` of 16 lanes; all of them if there are more.
[[maybe_unused]] static inline __mmask16 first_lanes(std::size_t count) noexcept {
  return count >= 16 ? __mmask16{0xFFFF} : static_cast<__mmask16>((1u << count) - 1u);
}

}  // namespace precast
