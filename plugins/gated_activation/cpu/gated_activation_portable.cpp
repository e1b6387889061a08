// SPDX-License-Identifier: Apache-2.0
#include "plugins/cpu/math.h"
#include "plugins/gated_activation/cpu/gated_activation_range.h"

namespace precast {

void silu_range_portable(const float* gate, const float* up, float* output, std::size_t count) noexcept {
  for (std::size_t i = 0; i < count; ++i) output[i] = math::silu(gate[i]) * up[i];
}

}  // namespace precast
