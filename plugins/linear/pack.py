"""Packing weight matrices for `Linear` and `Embedding`: see `precast.plugins.layouts` for the layouts.

Weights come as row blocks (q, k and v of one fused projection, say), each [rows, in_features] in float32, bfloat16 or
float16, possibly mapped from a file. They are read once, in slices of at most a few MiB, so that packing into a mapped
file needs memory for neither matrix.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from precast.plugins.layouts import TILE_OUTPUTS, DenseLayout, WeightLayout, weight_layout

Weights: TypeAlias = NDArray[Any]
"""[rows, in_features], float32, bfloat16 or float16."""

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_SOURCE_DTYPES = (np.dtype(np.float32), _BFLOAT16, np.dtype(np.float16))
_SLICE_BYTES = 1 << 20


def packed_size(layout: str, out_features: int, in_features: int) -> int:
    """Bytes of a packed [out_features, in_features] matrix. ValueError: unknown layout, dimension below 1."""
    return weight_layout(layout).packed_size(out_features, in_features)


def pack(layout: str, parts: Sequence[Weights]) -> NDArray[np.uint8]:
    """Pack the row blocks `parts`, one below the other, into a new array. Errors as in `pack_into`."""
    out_features, in_features = _matrix_shape(parts)
    packed = np.empty(packed_size(layout, out_features, in_features), np.uint8)
    pack_into(layout, parts, packed)
    return packed


def pack_into(layout: str, parts: Sequence[Weights], out: NDArray[np.uint8]) -> None:
    """Pack the row blocks `parts`, one below the other, into `out`, every byte of which is written.

    Values are converted to the layout's dtype, rounding to nearest even. ValueError: unknown layout, no parts, parts of
    different widths or of another dtype, `out` of another length or not contiguous.
    """
    target = weight_layout(layout)
    out_features, in_features = _matrix_shape(parts)
    size_bytes = target.packed_size(out_features, in_features)
    if out.dtype != np.uint8 or out.shape != (size_bytes,) or not out.flags.c_contiguous:
        raise ValueError(
            f"packing [{out_features}, {in_features}] as {layout} needs a contiguous uint8 array of {size_bytes} "
            f"bytes, not {out.dtype} {list(out.shape)}"
        )
    if isinstance(target, DenseLayout):
        rows = out.view(_dtype(target)).reshape(out_features, in_features)
        start = 0
        for part in parts:
            rows[start : start + len(part)] = part
            start += len(part)
        return
    lines = out.view(np.uint32).reshape(target.num_tiles(out_features), -1, TILE_OUTPUTS)
    tiles_per_slice = max(1, _SLICE_BYTES * len(lines) // size_bytes)
    for first in range(0, len(lines), tiles_per_slice):
        target_lines = lines[first : first + tiles_per_slice]
        rows = _rows(target, parts, first * TILE_OUTPUTS, len(target_lines) * TILE_OUTPUTS)
        # An output's part of a line is 4 bytes in every layout (one fp32, two bf16), so packing is a transposition.
        target_lines[...] = rows.view(np.uint32).reshape(len(target_lines), TILE_OUTPUTS, -1).transpose(0, 2, 1)


def unpack(layout: str, packed: NDArray[np.uint8], out_features: int, in_features: int) -> NDArray[np.float32]:
    """The matrix [out_features, in_features] of a packed tensor. ValueError: unknown layout, wrong length."""
    source = weight_layout(layout)
    size_bytes = source.packed_size(out_features, in_features)
    if packed.size != size_bytes:
        raise ValueError(
            f"[{out_features}, {in_features}] packed as {layout} has {size_bytes} bytes, not {packed.size}"
        )
    if isinstance(source, DenseLayout):
        return packed.view(_dtype(source)).reshape(out_features, in_features).astype(np.float32)
    lines = packed.view(_dtype(source)).reshape(
        -1, source.lines_per_tile(in_features), TILE_OUTPUTS, source.inputs_per_line
    )
    w_NK = lines.transpose(0, 2, 1, 3).reshape(lines.shape[0] * TILE_OUTPUTS, -1)[:out_features, :in_features]
    return np.asarray(w_NK, np.float32)


def _matrix_shape(parts: Sequence[Weights]) -> tuple[int, int]:
    """(out_features, in_features) of the parts together."""
    if not parts:
        raise ValueError("packing a weight needs at least one row block")
    for part in parts:
        if part.ndim != 2 or part.dtype not in _SOURCE_DTYPES:
            raise ValueError(
                "a weight to pack is [rows, in_features] in float32, bfloat16 or float16, "
                f"not {part.dtype} {list(part.shape)}"
            )
        if part.shape[1] != parts[0].shape[1]:
            widths = ", ".join(str(p.shape[-1]) for p in parts)
            raise ValueError(f"row blocks of one weight have the same in_features, not {widths}")
    return sum(part.shape[0] for part in parts), parts[0].shape[1]


def _dtype(layout: WeightLayout | DenseLayout) -> np.dtype[Any]:
    return _BFLOAT16 if layout.dtype == "bfloat16" else np.dtype(layout.dtype)


def _rows(layout: WeightLayout, parts: Sequence[Weights], first: int, count: int) -> Weights:
    """Rows first .. first + count - 1 of all parts in the layout's dtype, zeros where there is no row or input."""
    width = layout.lines_per_tile(parts[0].shape[1]) * layout.inputs_per_line
    rows = np.zeros((count, width), _dtype(layout))
    start = 0
    for part in parts:
        wanted = part[max(first - start, 0) : max(first + count - start, 0)]
        at = max(start - first, 0)
        rows[at : at + len(wanted), : part.shape[1]] = wanted
        start += len(part)
    return rows
