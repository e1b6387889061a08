// The sampler again, slow and plain: everything is copied and sorted, sums and exponentials are fp64.
#pragma once

#include "runtime/native/src/sampling/logits_processor.h"
#include "runtime/native/src/sampling/sampled_token.h"

namespace precast::test {

/// What Sampler::sample gives for a row that wants no processor; of an error, the code only. Shares gumbel_noise with it and
/// nothing else. `top_p_factor` shifts top_p a little: a sum may fall on either side of the border by its rounding.
SampledToken reference_sample(const SamplingRow& row, double top_p_factor = 1.0);

}  // namespace precast::test
