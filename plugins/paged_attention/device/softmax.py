"""The running softmax that the context and the decode kernel share.

M = rows times heads of a tile, J = tokens of a tile, D = head_dim padded. Scores are in units of log2: exp2(x) is one
instruction where exp(x) is two.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton  # noqa: TID253  imported only where kernels are compiled or interpreted
import triton.language as tl  # noqa: TID253


@triton.jit
def add_tile(scores_MJ, visible_MJ, v_JD, max_M, sum_M, weighted_MD, SCALE_LOG2: tl.constexpr, MASKED: tl.constexpr):
    """Adds a tile of tokens to the running (maximum, sum, weighted values) and returns them, all fp32.

    scores are the bare products q.k; SCALE_LOG2 = scale * log2(e) > 0 multiplies them. With MASKED, tokens that are not
    visible take no part: a tile in which a row sees nothing changes none of its bits. Either way the numbers are the
    same: the multiplication is fused by hand, not where the compiler can, and rounding keeps the order of scores.
    """
    if MASKED:
        scores_MJ = tl.where(visible_MJ, scores_MJ, float("-inf"))
    new_max_M = tl.maximum(max_M, tl.max(scores_MJ, axis=1) * SCALE_LOG2)
    base_M = new_max_M
    if MASKED:
        base_M = tl.where(new_max_M == float("-inf"), 0.0, new_max_M)  # no -inf - -inf
    e_MJ = tl.math.exp2(tl.fma(scores_MJ, tl.full(scores_MJ.shape, SCALE_LOG2, tl.float32), -base_M[:, None]))
    factor_M = tl.math.exp2(max_M - base_M)
    sum_M = sum_M * factor_M + tl.sum(e_MJ, axis=1)
    weighted_MD = tl.dot(e_MJ.to(v_JD.dtype), v_JD, weighted_MD * factor_M[:, None])
    return new_max_M, sum_M, weighted_MD
