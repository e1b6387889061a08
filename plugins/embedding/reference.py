"""Embedding in NumPy: what the kernels are compared with."""

import numpy as np
from numpy.typing import NDArray

from precast.plugins.embedding.schema import EmbeddingAttributes
from precast.plugins.layouts import TILE_OUTPUTS, DenseLayout, weight_layout
from precast.plugins.linear.pack import unpack


def embedding(
    token_ids_T: NDArray[np.int32], table: NDArray[np.uint8], attributes: EmbeddingAttributes
) -> NDArray[np.float32]:
    """[T] -> [T, H]. IndexError: a token id is outside the table. ValueError: the table has another length."""
    rows_T = token_ids_T - attributes.row_start
    is_outside_T = (rows_T < 0) | (rows_T >= attributes.rows)
    if is_outside_T.any() and not attributes.is_slice:
        outside = token_ids_T[is_outside_T][0]
        raise IndexError(f"Embedding: token id {outside} is outside the table of {attributes.rows} rows")
    if table.size != attributes.table_size_bytes:
        raise ValueError(f"Embedding: the table has {table.size} bytes, not {attributes.table_size_bytes}")
    layout = weight_layout(attributes.layout)
    rows_per_tile = 1 if isinstance(layout, DenseLayout) else TILE_OUTPUTS
    tiles = table.reshape(-1, layout.packed_size(rows_per_tile, attributes.features))
    y_TH = np.zeros((token_ids_T.size, attributes.features), np.float32)
    for t in np.flatnonzero(~is_outside_T):
        tile, row = divmod(int(rows_T[t]), rows_per_tile)
        y_TH[t] = unpack(attributes.layout, tiles[tile], rows_per_tile, attributes.features)[row]
    return y_TH
