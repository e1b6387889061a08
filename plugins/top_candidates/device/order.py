"""TopCandidates: logits as numbers that are compared as integers."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton  # noqa: TID253  imported only where kernels are compiled or interpreted
import triton.language as tl  # noqa: TID253

LEAST = tl.constexpr(-0x80000000)
"""No logit but a NaN has a smaller or an equal order."""


@triton.jit
def order_of(logits):
    """int32, in the order of fp32 logits; zeros of either sign have the same. A NaN is somewhere."""
    bits = tl.where(logits == 0.0, 0.0, logits).to(tl.int32, bitcast=True)
    # The bits of a positive logit are in its order; those of a negative one are in the reverse, but for the sign.
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
