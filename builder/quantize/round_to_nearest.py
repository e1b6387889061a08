"""Rounding to nearest: the scale of a group follows from its greatest magnitude, each value from its own weight.

Matrices are read in slices of rows: beside a matrix and its values, memory holds little.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray

from precast.builder.errors import BuildError
from precast.builder.quantize.formats import QuantFormat

Matrix = NDArray[Any]
"""[N, K], float32, bfloat16 or float16."""

_FLOAT8_MAX = 448.0
_SLICE_ELEMENTS = 1 << 21


@dataclass(frozen=True)
class Scales:
    """The scales of a matrix.

    Attributes:
        groups: [N, K / group_size] in the dtype of activations, or float8 e4m3fn.
        matrix: float32 []: what e4m3 scales are multiplied with; None for formats without them.
    """

    groups: Matrix
    matrix: NDArray[np.float32] | None = None

    def effective(self) -> NDArray[np.float32]:
        """What values are multiplied with, float32 [N, K / group_size]."""
        groups = self.groups.astype(np.float32)
        return groups if self.matrix is None else groups * self.matrix


def find_scales(quant_format: QuantFormat, w_NK: Matrix, dtype: DTypeLike) -> Scales:
    """The scales of a matrix, rounded to `dtype`, or to e4m3 where the format has such scales.

    A scale that would round to zero is 1, and its group's values become zero.

    Raises:
        BuildError: the columns do not divide into groups, or a weight is infinite or no number.
    """
    greatest_NG = _greatest_magnitudes(quant_format, w_NK)
    if not np.isfinite(greatest_NG).all():
        row = int(np.argmin(np.isfinite(greatest_NG).all(axis=1)))
        raise BuildError(f"row {row} of the matrix holds an infinity or NaN, which {quant_format.name} cannot store")
    exact_NG = greatest_NG / np.float32(quant_format.largest)
    if not quant_format.fp8_scales:
        with np.errstate(over="ignore"):  # said below
            rounded_NG = exact_NG.astype(dtype)
        if not np.isfinite(rounded_NG).all():
            raise BuildError(
                f"a scale of {exact_NG.max():.3g} is needed, which {np.dtype(dtype).name} cannot hold: build with "
                "dtype bfloat16"
            )
        return Scales(_without_zeros(rounded_NG))
    matrix = np.float32(exact_NG.max(initial=0) / np.float32(_FLOAT8_MAX)) or np.float32(1)
    groups = np.minimum(exact_NG / matrix, np.float32(_FLOAT8_MAX)).astype(ml_dtypes.float8_e4m3fn)
    return Scales(_without_zeros(groups), np.asarray(matrix, np.float32))


def round_values(quant_format: QuantFormat, w_NK: Matrix, scales: Scales) -> Matrix:
    """The values of a matrix, [N, K] in the format's dtype: weight / scale, to nearest, ties to even, within limits."""
    values = np.empty(w_NK.shape, quant_format.value_dtype)
    scales_NG = scales.effective()
    for rows in _row_slices(*w_NK.shape):
        groups = _groups(quant_format, w_NK[rows])
        scaled = np.clip(groups / scales_NG[rows, :, None], *quant_format.limits)
        if np.issubdtype(quant_format.value_dtype, np.integer) or quant_format.value_dtype == ml_dtypes.int4:
            scaled = np.rint(scaled)
        values[rows] = scaled.reshape(groups.shape[0], -1).astype(quant_format.value_dtype)
    return values


def dequantize(quant_format: QuantFormat, values: Matrix, scales: Scales) -> NDArray[np.float32]:
    """float32 [N, K]: what the values stand for."""
    groups = _groups(quant_format, values)
    return (groups * scales.effective()[:, :, None]).reshape(values.shape)


def pack_values(quant_format: QuantFormat, values: Matrix) -> NDArray[np.uint8]:
    """The bytes of values, uint8 [N, K * value_bits / 8]: of 4-bit values the even column is in the low half."""
    if quant_format.value_bits == 8:
        return values.view(np.uint8)
    nibbles = values.view(np.uint8) & np.uint8(0xF)
    packed: NDArray[np.uint8] = nibbles[:, 0::2] | nibbles[:, 1::2] << np.uint8(4)
    return packed


def _greatest_magnitudes(quant_format: QuantFormat, w_NK: Matrix) -> NDArray[np.float32]:
    """float32 [N, K / group_size]."""
    num_rows, in_features = w_NK.shape
    greatest = np.empty((num_rows, quant_format.num_groups(in_features)), np.float32)
    for rows in _row_slices(num_rows, in_features):
        groups = _groups(quant_format, w_NK[rows])
        greatest[rows] = np.maximum(groups.max(axis=2), -groups.min(axis=2))
    return greatest


def _groups(quant_format: QuantFormat, w_NK: Matrix) -> NDArray[np.float32]:
    """float32 [N, groups, group_size]."""
    return w_NK.astype(np.float32).reshape(len(w_NK), quant_format.num_groups(w_NK.shape[1]), -1)


def _without_zeros(scales: Matrix) -> Matrix:
    return np.where(scales == 0, np.ones((), scales.dtype), scales)


def _row_slices(num_rows: int, in_features: int) -> Iterator[slice]:
    step = max(1, _SLICE_ELEMENTS // in_features)
    return (slice(first, first + step) for first in range(0, num_rows, step))
