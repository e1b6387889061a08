"""RmsNorm: a row is added to its residual, rounded, normed in fp32, rounded, weighted and rounded.

T = rows, H = features.

A program does one row, all of it in registers, so memory is read once. What is normed is the rounded sum, which the
next layer reads, and the normed row is rounded before it is multiplied by the weight, as transformers does:

    total = round(x + residual)
    y     = round(round(total * scale) * weight)      scale = 1 / sqrt(mean(total^2) + EPSILON)

The mean, the square root and the quotient are correctly rounded; the sum of squares has an order of its own, which
depends on H alone. Where it is beyond fp32, 3.4e38, the scale is 0.

Floor: 2 * T * H bytes for each of x and y, and of residual and total: 4096 rows of 4096 features with a residual are
134 MB, 28 us at 4.8 TB/s. The few rows of a decode step cost a launch.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton  # noqa: TID253  imported only where kernels are compiled or interpreted
import triton.language as tl  # noqa: TID253


@triton.jit
def rms_norm(
    x,  # element type [T, H]
    weight,  # element type [H]
    residual,  # element type [T, H], None without one
    y,  # element type [T, H], written
    total,  # element type [T, H], the op's output sum, written; None without a residual
    H: tl.constexpr,
    EPSILON: tl.constexpr,
):
    H_PADDED: tl.constexpr = triton.next_power_of_2(H)
    element = x.dtype.element_ty
    h = tl.arange(0, H_PADDED)
    row = tl.program_id(0).to(tl.int64) * H  # T * H may pass 2^31
    total_H = tl.load(x + row + h, mask=h < H, other=0.0).to(tl.float32)
    if residual is not None:
        total_H += tl.load(residual + row + h, mask=h < H, other=0.0).to(tl.float32)
        rounded_H = total_H.to(element)
        tl.store(total + row + h, rounded_H, mask=h < H)
        total_H = rounded_H.to(tl.float32)
    weight_H = tl.load(weight + h, mask=h < H, other=0.0)  # on its way while the row is summed up
    mean = tl.div_rn(tl.sum(total_H * total_H, axis=0), H * 1.0)
    scale = tl.div_rn(1.0, tl.sqrt_rn(mean + EPSILON))
    normed_H = (total_H * scale).to(element)
    y_H = (normed_H.to(tl.float32) * weight_H.to(tl.float32)).to(element)
    tl.store(y + row + h, y_H, mask=h < H)
