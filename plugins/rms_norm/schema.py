"""RmsNorm, version 1: root-mean-square normalisation of rows, with an optional residual added first.

    sum    = x + residual                                      (just x without a residual)
    y[t,i] = (sum[t,i] * scale[t]) * weight[i]                 scale[t] = 1 / sqrt(mean_i(sum[t,i]^2) + epsilon)

T = tokens (rows), H = hidden size.

Inputs
    x         float32 [T, H]
    weight    float32 [H]
    residual  float32 [T, H]   optional
Outputs
    y         float32 [T, H]
    sum       float32 [T, H]   present exactly when residual is: it is the next residual
Attributes
    epsilon   float            added to the mean of the squares; finite and >= 0

Everything is fp32. The order of the sum of squares is fixed, so that a row's bits depend on that row only:
element i belongs to partial sum i mod 64; each partial sum adds its squares in ascending i; then partial sums
combine as p[j] + p[j+32], then + 16, 8, 4, 2, 1. The mean is that sum divided by H (a division), `scale` is a division
by a square root, both correctly rounded: approximate reciprocals are not allowed. Kernel levels differ only in whether
a square is rounded before it is added (portable) or not (fused multiply-add).

On devices all inputs and outputs are bfloat16 or float16, and only what is between is fp32: sum is rounded to 16 bits
before it is normed, sum * scale is rounded before it is multiplied by the weight, and y at last. The order of the sum
of squares is the kernel's own; where it is beyond fp32, the scale is 0. H is at most 16384.

Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019, https://arxiv.org/abs/1910.07467.
"""

import math
from dataclasses import dataclass

from precast.plugins import domain

DOMAIN = domain.DOMAIN
NAME = "RmsNorm"
VERSION = 1


@dataclass(frozen=True)
class RmsNormAttributes:
    """The op's attributes. Raises ValueError where they make no sense."""

    epsilon: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.epsilon) or self.epsilon < 0:
            raise ValueError(f"RmsNorm: epsilon is {self.epsilon}; it must be finite and not negative")
