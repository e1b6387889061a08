// SPDX-License-Identifier: Apache-2.0
// A run of neighbouring elements of GatedActivation at each kernel level. Inside this op only.
#pragma once

#include <cstddef>

namespace precast {

// output[i] = silu(gate[i]) * up[i] for i < count.
void silu_range_portable(const float* gate, const float* up, float* output, std::size_t count) noexcept;
void silu_range_avx2(const float* gate, const float* up, float* output, std::size_t count) noexcept;
void silu_range_avx512(const float* gate, const float* up, float* output, std::size_t count) noexcept;

}  // namespace precast
