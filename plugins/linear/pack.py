"""Packing weight matrices for `Linear` and `Embedding`: see `precast.plugins.layouts` for the layouts.

Weights come as row blocks (q, k and v of one fused projection, say), each [rows, in_features] in float32, bfloat16 or
float16, possibly mapped from a file. They are read once, in slices of at most a few MiB, so that packing into a mapped
file needs memory for neither matrix.
"""

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from precast.plugins.layouts import LINE_BYTES, TILE_OUTPUTS, WeightLayout, weight_layout

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
            f"Packing [{out_features}, {in_features}] as {layout} needs a contiguous uint8 array of {size_bytes} bytes, "
            f"not {out.dtype} {list(out.shape)}."
        )
    tile_bytes = target.lines_per_tile(in_features) * LINE_BYTES
    tiles = out.reshape(target.num_tiles(out_features), tile_bytes)
    next_tile = 0
    for rows in _slices_of_whole_tiles(parts, max(1, _SLICE_BYTES // tile_bytes)):
        num_tiles = target.num_tiles(len(rows))
        _pack_rows(target, rows, tiles[next_tile : next_tile + num_tiles])
        next_tile += num_tiles


def unpack(layout: str, packed: NDArray[np.uint8], out_features: int, in_features: int) -> NDArray[np.float32]:
    """The matrix [out_features, in_features] of a packed tensor. ValueError: unknown layout, wrong length."""
    source = weight_layout(layout)
    size_bytes = source.packed_size(out_features, in_features)
    if packed.size != size_bytes:
        raise ValueError(
            f"[{out_features}, {in_features}] packed as {layout} has {size_bytes} bytes, not {packed.size}."
        )
    lines = packed.view(_dtype(source)).reshape(-1, source.lines_per_tile(in_features), TILE_OUTPUTS, source.inputs_per_line)
    rows = lines.transpose(0, 2, 1, 3).reshape(lines.shape[0] * TILE_OUTPUTS, -1)
    return rows[:out_features, :in_features].astype(np.float32)


def _matrix_shape(parts: Sequence[Weights]) -> tuple[int, int]:
    """(out_features, in_features) of the parts together."""
    if not parts:
        raise ValueError("Packing a weight needs at least one row block.")
    for part in parts:
        if part.ndim != 2 or part.dtype not in _SOURCE_DTYPES:
            raise ValueError(
                f"A weight to pack is [rows, in_features] in float32, bfloat16 or float16, not {part.dtype} {list(part.shape)}."
            )
        if part.shape[1] != parts[0].shape[1]:
            widths = ", ".join(str(p.shape[-1]) for p in parts)
            raise ValueError(f"Row blocks of one weight have the same in_features, not {widths}.")
    return sum(part.shape[0] for part in parts), parts[0].shape[1]


def _dtype(layout: WeightLayout) -> np.dtype[Any]:
    return _BFLOAT16 if layout.dtype == "bfloat16" else np.dtype(np.float32)


def _slices_of_whole_tiles(parts: Sequence[Weights], max_tiles: int) -> Iterator[Weights]:
    """The rows of all parts in order, in slices of a multiple of 16 rows; only the last may have another number."""
    left_over: list[Weights] = []
    for part in parts:
        start = 0
        while start < len(part):
            missing = -sum(map(len, left_over)) % TILE_OUTPUTS
            stop = start + (missing or max_tiles * TILE_OUTPUTS)
            left_over.append(part[start:stop])
            start = stop
            if sum(map(len, left_over)) % TILE_OUTPUTS == 0:
                yield _joined(left_over)
                left_over = []
    if left_over:
        yield _joined(left_over)


def _joined(blocks: list[Weights]) -> Weights:
    """Blocks below one another; dtypes may differ, and float32 holds them all."""
    if len(blocks) == 1:
        return blocks[0]
    return np.concatenate([block.astype(np.float32) for block in blocks])


def _pack_rows(layout: WeightLayout, rows: Weights, tiles: NDArray[np.uint8]) -> None:
    """Fill `tiles` [tiles, bytes] from `rows`, which start a tile. Missing rows and inputs become zeros."""
    rows = _converted(layout, rows)
    ...
