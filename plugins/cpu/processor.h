// SPDX-License-Identifier: Apache-2.0
// What a processor can do, as far as kernels ask.
#pragma once

namespace precast {

// Sets of instructions beyond the base of x86-64. A processor of another family has none of them.
struct ProcessorFeatures {
  bool avx2 = false;
  bool fma = false;
  bool f16c = false;
  bool avx512f = false;
  bool avx512bw = false;
  bool avx512dq = false;
  bool avx512vl = false;
  bool avx512vnni = false;
  bool avx512bf16 = false;
};

// Those that this processor has and this operating system saves the registers of.
ProcessorFeatures this_processor() noexcept;

}  // namespace precast
