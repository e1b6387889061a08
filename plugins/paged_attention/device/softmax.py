"""The running softmax that the context and the decode kernel share.

M = rows times heads of a tile, J = tokens of a tile, D = head_dim padded. Scores are in units of log2: exp2(x) is one
instruction where exp(x) is two.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton  # noqa: TID253  imported only where kernels are compiled or interpreted
import triton.language as tl  # noqa: TID253


@triton.jit
def tanh_of_multiple(x, MULTIPLE: tl.constexpr):
    """tanh(y), y = MULTIPLE * x, within 7e-7 for every fp32 x: 1 - 2 / (exp(2y) + 1), which goes from -1 to 1.

    The GPU's own tanh has 11 bits; its exp2 and its quotient are right to two ulps, which is most of the 7e-7. The sum
    that could be fused is, by hand, as in add_tile. A score costs two exp2 and a reciprocal instead of one exp2.
    """
    LOG2_E: tl.constexpr = 1.4426950408889634
    reciprocal = 1.0 / (tl.math.exp2(x * (2.0 * MULTIPLE * LOG2_E)) + 1.0)
    return tl.fma(reciprocal, tl.full(x.shape, -2.0, tl.float32), tl.full(x.shape, 1.0, tl.float32))


@triton.jit
def add_sink(sinks, head, max_M, sum_M):
    """Merges the sink of each row's query head, sinks[head]: returns (factor of the weighted values, sum), both fp32.

    `head` is of max_M's shape, as sum_M is; all may be scalars.
    """
    LOG2_E: tl.constexpr = 1.4426950408889634
    sink_M = tl.load(sinks + head) * LOG2_E
    new_max_M = tl.maximum(max_M, sink_M)
    factor_M = tl.math.exp2(max_M - new_max_M)
    return factor_M, tl.fma(sum_M, factor_M, tl.math.exp2(sink_M - new_max_M))


@triton.jit
def add_tile(
    scores_MJ, visible_MJ, v_JD, max_M, sum_M, weighted_MD,
    SCALE_LOG2: tl.constexpr, TANH_SCALE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Adds a tile of tokens to the running (maximum, sum, weighted values) and returns them, all fp32.

    scores are the bare products q.k; SCALE_LOG2 = scale * log2(e) > 0 multiplies them. With a soft-cap, TANH_SCALE =
    scale / softcap > 0, and SCALE_LOG2 = softcap * log2(e) multiplies tanh(TANH_SCALE * q.k). Else TANH_SCALE is 0.

    With MASKED, tokens that are not visible take no part: a tile in which a row sees nothing changes none of its bits.
    Either way the numbers are the same: the multiplication is fused by hand, not where the compiler can, and rounding
    keeps the order of scores.
    """
    if TANH_SCALE > 0:
        scores_MJ = tanh_of_multiple(scores_MJ, TANH_SCALE)
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
