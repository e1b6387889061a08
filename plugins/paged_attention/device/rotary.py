"""The rotary embedding: sine and cosine of any position, and the norm and rotation of heads.

H = heads, D = head_dim, R = rotary_dim. Compiled without fused multiplication and addition: products round first.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton  # noqa: TID253  imported only where kernels are compiled or interpreted
import triton.language as tl  # noqa: TID253


@triton.jit
def sin_cos(x):
    """(sin, cos) of fp32 x, within 2e-7 up to 2^30 radians. As plugins/cpu/math.h, operation by operation.

    The GPU's own sine is exact only near 0, and the library's takes a slow path through local memory. The few fp64
    operations are done once for a token, not once for a head.
    """
    # Adding 1.5 * 2^52 rounds to an integer, which then stands in the low bits of the sum.
    shifted = x.to(tl.float64) * 0.63661977236758134308 + 6755399441055744.0
    n = shifted - 6755399441055744.0
    r = (x.to(tl.float64) - n * 1.57079632679489661923).to(tl.float32)
    z = r * r
    sin_r = ((-0.000194955675 * z + 0.00833197776) * z - 0.166666508) * z * r + r
    cos_r = ((2.44383791e-05 * z - 0.00138873665) * z + 0.0416666456) * z * z + (1.0 - 0.5 * z)
    quadrant = shifted.to(tl.int64, bitcast=True).to(tl.int32)
    is_swapped = (quadrant & 1) != 0
    sine = tl.where(is_swapped, cos_r, sin_r)
    cosine = tl.where(is_swapped, sin_r, cos_r)
    sine = tl.where((quadrant & 2) != 0, -sine, sine)
    cosine = tl.where(((quadrant + 1) & 2) != 0, -cosine, cosine)
    return sine, cosine


@triton.jit
def norm_and_rotate(
    source,
    target,
    weight,
    cosine,
    sine,
    H: tl.constexpr,
    D: tl.constexpr,
    HALF: tl.constexpr,
    HAS_NORM: tl.constexpr,
    EPSILON: tl.constexpr,
):
    """Reads H heads [H, D] at `source`, norms and rotates them in fp32, stores them rounded at `target`, [H, D] too.

    HALF = R / 2; cosine and sine are [1, HALF padded] and already scaled. A head is read in three parts, the two that
    rotate into each other and the rest, so no element has to move between threads. Parts that are empty vanish.
    """
    REST: tl.constexpr = D - 2 * HALF
    h = tl.arange(0, triton.next_power_of_2(H))[:, None]
    squares = tl.zeros([triton.next_power_of_2(H)], tl.float32)
    if HALF > 0:
        i = tl.arange(0, triton.next_power_of_2(HALF))[None, :]
        rotates = (h < H) & (i < HALF)
        first = tl.load(source + (h * D + i), mask=rotates, other=0.0).to(tl.float32)
        second = tl.load(source + (h * D + i + HALF), mask=rotates, other=0.0).to(tl.float32)
        squares += tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)
    if REST > 0:
        j = tl.arange(0, triton.next_power_of_2(REST))[None, :]
        passes = (h < H) & (j < REST)
        rest = tl.load(source + (h * D + j + 2 * HALF), mask=passes, other=0.0).to(tl.float32)
        squares += tl.sum(rest * rest, axis=1)

    if HAS_NORM:
        scale = tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(squares, 1.0 * D) + EPSILON))[:, None]
        if HALF > 0:
            first = first * scale * tl.load(weight + i, mask=i < HALF, other=0.0)
            second = second * scale * tl.load(weight + i + HALF, mask=i < HALF, other=0.0)
        if REST > 0:
            rest = rest * scale * tl.load(weight + j + 2 * HALF, mask=j < REST, other=0.0)

    element_type = target.dtype.element_ty
    if HALF > 0:
        rotated_first = first * cosine - second * sine
        rotated_second = second * cosine + first * sine
        tl.store(target + (h * D + i), rotated_first.to(element_type), mask=rotates)
        tl.store(target + (h * D + i + HALF), rotated_second.to(element_type), mask=rotates)
    if REST > 0:
        tl.store(target + (h * D + j + 2 * HALF), rest.to(element_type), mask=passes)
