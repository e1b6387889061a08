"""Linear, version 1: a matrix product with packed weights and a fused bias.

    y[t,n] = bias[n] + sum over k of x[t,k] * W[n,k]

T = tokens (rows), K = in_features, N = out_features.

Inputs
    x             float32 [T, K]      T >= 0
    weight        uint8 [P]           W [N, K] packed in `layout`; P = LinearAttributes.weight_size_bytes
    bias          float32 [N]         optional; absent: zeros
Output
    y             float32 [T, N]
Attributes
    in_features   int
    out_features  int
    layout        string              one of precast.plugins.layouts: how W lies in memory, and its dtype


Numerics
========
An output element is one fp32 sum s that starts as bias[n] (+0 without a bias) and takes one product after the other.
Nothing else decides its bits: not T, not the other rows, not how the work is split over threads.

x16k1.f32/1     k ascending.
                Levels avx2, avx512:  s = fma(x[k], w[k], s)
                Level portable:       s = s + x[k] * w[k], each operation rounded

x16k2.bf16/1    x is first rounded to bf16, to nearest, ties to even: this is part of the op, whatever the kernel.
                Then pair after pair in ascending order, THE ODD ELEMENT OF A PAIR FIRST, as VDPBF16PS does:
                                 s = fma(x[2p+1], w[2p+1], s)
                                 s = fma(x[2p],   w[2p],   s)
                A product of two bf16 is exact in fp32, so that a multiplication and an addition are as good as an fma.
                Level avx512 takes every subnormal x, w and s for zero, as VCVTNEPS2BF16 and VDPBF16PS do whatever MXCSR
                says; the other levels keep them. Where no subnormal or infinity occurs all levels give the same bits.
                That is a property of this layout: between levels in general, equality is not promised.

dense.bf16/1, dense.f16/1
                x is first rounded to the layout's type. The order of the sum is the backend's.

An odd K is padded by one input that is 0 in x and in W. Infinities and NaNs follow IEEE 754; sign and payload of a NaN
are unspecified.
"""

from dataclasses import dataclass

from precast.plugins.domain import DOMAIN as DOMAIN
from precast.plugins.layouts import weight_layout

NAME = "Linear"
VERSION = 1


@dataclass(frozen=True)
class LinearAttributes:
    """The op's attributes. Raises ValueError where they make no sense."""

    in_features: int
    out_features: int
    layout: str

    def __post_init__(self) -> None:
        if self.in_features < 1 or self.out_features < 1:
            raise ValueError(
                f"Linear: in_features is {self.in_features} and out_features {self.out_features}; both must be positive"
            )
        weight_layout(self.layout)

    @property
    def weight_size_bytes(self) -> int:
        """Length of the packed weight."""
        return weight_layout(self.layout).packed_size(self.out_features, self.in_features)
