"""Linear, version 1: a matrix product with packed weights and a fused bias.

    y[t, n] = bias[n] + sum over k of x[t, k] * W[n, k]

| Input  | dtype   | shape                          |                                            |
|--------|---------|--------------------------------|--------------------------------------------|
| x      | float32 | [T, in_features]               | T >= 0 rows                                |
| weight | uint8   | [packed_size of `layout`]      | W [out_features, in_features], packed      |
| bias   | float32 | [out_features]                 | optional; absent: zeros                    |

| Output | dtype   | shape                          |
|--------|---------|--------------------------------|
| y      | float32 | [T, out_features]              |

`layout` is one of `precast.plugins.layouts`; it says the dtype of the weights, and with it how the op computes.

Numerics. Every output element is one fp32 sum s that starts as the bias (+0 where there is none) and takes the products
one after the other. Nothing else decides its bits: not T, not the other rows, not the number of threads.

- `x16k1.f32/1`: k ascending. Level avx512: s = fma(x[k], w[k], s). Level portable: s = s + x[k] * w[k], both operations
  rounded.
- `x16k2.bf16/1`: x is first rounded to bf16, to nearest even; that is part of the op. Then pair by pair in ascending order,
  **the odd element of a pair first**, as VDPBF16PS does: s = fma(x[2p+1], w[2p+1], s), then s = fma(x[2p], w[2p], s).
  A product of two bf16 is exact in fp32, so a multiplication and an addition give the same. Level avx512 takes a subnormal
  x, w or s for zero, whatever MXCSR says; level portable keeps them. Elsewhere the two levels agree, but that is not
  promised of levels.

Padding (of K to a multiple of the inputs per line) multiplies zeros by zeros. Infinities and NaNs follow IEEE 754; a NaN's
sign and payload are not specified.
"""

from dataclasses import dataclass

from precast.plugins import domain, layouts

DOMAIN = domain.DOMAIN
NAME = "Linear"
VERSION = 1


@dataclass(frozen=True)
class LinearAttributes:
    """The attributes of a Linear node, named as in the graph. Raises ValueError where they make no matrix."""

    in_features: int
    out_features: int
    layout: str

    def __post_init__(self) -> None:
        _ = self.weight_size_bytes

    @property
    def weight_size_bytes(self) -> int:
        """Length of the packed weight."""
        return layouts.weight_layout(self.layout).packed_size(self.out_features, self.in_features)
