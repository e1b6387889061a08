"""Recipes of the initialisers that a quantised matrix becomes: its values, and the scales of their groups."""

from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from precast.builder.errors import BuildError
from precast.builder.quantize.formats import QuantFormat, quant_format
from precast.builder.quantize.round_to_nearest import Scales, find_scales, pack_values, round_values
from precast.builder.weights import Tensors, WeightSource
from precast.checkpoints.tensor_info import NUMPY_DTYPES
from precast.checkpoints.weights_index import DTYPE_BYTES, PLAIN_LAYOUT

Part = Literal["values", "scales", "matrix_scale"]

_GRAPH_DTYPES = {"int8": "int8", "int4": "int4", "fp8": "float8_e4m3fn", "nvfp4": "float4_e2m1fn"}


@dataclass(frozen=True)
class QuantizedRecipe:
    """One part of a matrix [out_features, in_features] that is quantised by rounding to nearest.

    Attributes:
        format: A key of quantize.formats.FORMATS.
        part: "values" [N, K]; "scales" [N, groups], or [N] where a row is one group; "matrix_scale" [].
        dtype: Of activations, and so of scales that are not e4m3.
        sources: The matrix, concatenated along its first axis.
    """

    format: str
    part: Part
    dtype: str
    sources: tuple[WeightSource, ...]
    layout: str = PLAIN_LAYOUT

    @property
    def _format(self) -> QuantFormat:
        return quant_format(self.format)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the part as the graph sees it."""
        out_features = sum(source.shape[0] for source in self.sources)
        in_features = self.sources[0].shape[1]
        if self.part == "values":
            return (out_features, in_features)
        if self.part == "matrix_scale":
            return ()
        return (
            (out_features,)
            if self._format.group_size is None
            else (
                out_features,
                self._format.num_groups(in_features),
            )
        )

    @property
    def graph_dtype(self) -> str:
        """A key of network.DTYPES."""
        if self.part == "values":
            return _GRAPH_DTYPES[self.format]
        if self.part == "matrix_scale":
            return "float32"
        return "float8_e4m3fn" if self._format.fp8_scales else self.dtype

    @property
    def graph_shape(self) -> tuple[int, ...]:
        return self.shape

    @property
    def stored_dtype(self) -> str:
        """Of the bytes in a weights file, which knows no numbers of less than 8 bits and none of fp8."""
        return self.graph_dtype if self.graph_dtype in DTYPE_BYTES else "uint8"

    @property
    def stored_shape(self) -> tuple[int, ...]:
        if self.part == "values" and self._format.value_bits == 4:
            return (self.shape[0], self.shape[1] // 2)
        return self.shape

    @property
    def size_bytes(self) -> int:
        return prod(self.stored_shape) * DTYPE_BYTES[self.stored_dtype]

    def materialise(self, checkpoint: Tensors) -> NDArray[Any]:
        """Read the matrix, quantise it, and give the bytes of this part as `stored_dtype` of `stored_shape`."""
        parts = [source.read(checkpoint) for source in self.sources]
        w_NK = parts[0] if len(parts) == 1 else np.concatenate(parts)
        try:
            scales = find_scales(self._format, w_NK, NUMPY_DTYPES[self.dtype])
        except BuildError as error:
            raise BuildError(f"{' | '.join(map(str, self.sources))}: {error}") from error
        return self._part(w_NK, scales)

    def _part(self, w_NK: NDArray[Any], scales: Scales) -> NDArray[Any]:
        if self.part == "matrix_scale":
            assert scales.matrix is not None  # the pass asks for it where the format has one
            return scales.matrix
        if self.part == "scales":
            stored = scales.groups.view(np.uint8) if self._format.fp8_scales else scales.groups
            return stored.reshape(self.stored_shape)
        values = pack_values(self._format, round_values(self._format, w_NK, scales))
        return values.view(np.int8) if self.stored_dtype == "int8" else values
