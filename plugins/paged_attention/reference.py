"""PagedAttention in NumPy: what the kernels are compared with.

Follows schema.py, with its roundings to the cache's type and its splits; sums are taken in fp64.
"""

from typing import Any

import numpy as np
from ml_dtypes import bfloat16
from numpy.typing import NDArray

from precast.plugins.paged_attention.schema import TOKENS_PER_SPLIT, TOKENS_PER_TILE, PagedAttentionAttributes
from precast.plugins.rms_norm.reference import rms_norm
from precast.plugins.rms_norm.schema import RmsNormAttributes

Int32 = NDArray[np.int32]
Float32 = NDArray[np.float32]


ELEMENT_TYPES: dict[str, np.dtype[Any]] = {
    "kv16.f32/1": np.dtype(np.float32),
    "kv16.bf16/1": np.dtype(bfloat16),
    "kvrow.bf16/1": np.dtype(bfloat16),
    "kvrow.f16/1": np.dtype(np.float16),
}
"""The type of one stored number of each KV layout; q, k, v and probabilities are rounded to it."""


class KvPool:
    """Reads and writes tokens of a block pool by absolute position. A view: it changes the bytes it was made of."""

    def __init__(self, kv: NDArray[np.uint8], attributes: PagedAttentionAttributes) -> None:
        heads, dim = attributes.num_kv_heads, attributes.head_dim
        tiles = attributes.tokens_per_block // TOKENS_PER_TILE
        self.element_type = ELEMENT_TYPES[attributes.kv_layout]
        self.tokens_per_block = attributes.tokens_per_block
        self._has_rows = attributes.kv_layout.startswith("kvrow.")
        self._has_pairs = attributes.kv_layout == "kv16.bf16/1"
        elements = kv.view(self.element_type)
        # Axes are split and swapped, never merged, so these stay views of `kv`: [block, head, tile, ...].
        if self._has_rows:
            rows = elements.reshape(-1, heads, 2, tiles, TOKENS_PER_TILE, dim)
            self._k, self._v = rows[:, :, 0], rows[:, :, 1]
            return
        tile_pairs = elements.reshape(-1, heads, tiles, 2, TOKENS_PER_TILE * dim)
        k, v = tile_pairs[:, :, :, 0], tile_pairs[:, :, :, 1]
        if self._has_pairs:
            self._k = k.reshape(*k.shape[:3], dim // 2, TOKENS_PER_TILE, 2)
            self._v = v.reshape(*v.shape[:3], TOKENS_PER_TILE // 2, dim, 2)
        else:
            self._k = k.reshape(*k.shape[:3], dim, TOKENS_PER_TILE).swapaxes(-1, -2)
            self._v = v.reshape(*v.shape[:3], TOKENS_PER_TILE, dim)

    def write(self, block_table: Int32, position: int, k_HD: Float32, v_HD: Float32) -> None:
        """Stores one token, rounded to the cache's type; in a kv16 layout the first one of a tile zeroes it before."""
        block, tile, lane = self._locate(block_table, position)
        if lane == 0 and not self._has_rows:
            self._k[block, :, tile] = 0
            self._v[block, :, tile] = 0
        if self._has_pairs:
            heads, dim = k_HD.shape
            self._k[block, :, tile, :, lane, :] = k_HD.reshape(heads, dim // 2, 2)
            self._v[block, :, tile, lane // 2, :, lane % 2] = v_HD
        else:
            self._k[block, :, tile, lane] = k_HD
            self._v[block, :, tile, lane] = v_HD

    def read(self, block_table: Int32, positions: range) -> tuple[Float32, Float32]:
        """K and V, each [heads, tokens, dim] in fp32, of consecutive positions; the first one starts a tile."""
        tiles = [self._locate(block_table, p)[:2] for p in positions[::TOKENS_PER_TILE]]
        blocks, tiles_in_block = (list(column) for column in zip(*tiles, strict=True))
        k, v = self._k[blocks, :, tiles_in_block], self._v[blocks, :, tiles_in_block]
        if self._has_pairs:
            k = k.transpose(1, 0, 3, 2, 4)  # [tile, head, dim/2, token, 2] -> [head, tile, token, dim/2, 2]
            v = v.transpose(1, 0, 2, 4, 3)  # [tile, head, pair, dim, 2] -> [head, tile, pair, 2, dim]
        else:
            k, v = k.swapaxes(0, 1), v.swapaxes(0, 1)  # [head, tile, token, dim]
        heads = k.shape[0]
        shape = (heads, len(tiles) * TOKENS_PER_TILE, -1)
        return (
            k.reshape(shape)[:, : len(positions)].astype(np.float32),
            v.reshape(shape)[:, : len(positions)].astype(np.float32),
        )

    def _locate(self, block_table: Int32, position: int) -> tuple[int, int, int]:
        """(block, tile in the block, lane in the tile) of a position."""
        in_block = position % self.tokens_per_block
        block = int(block_table[position // self.tokens_per_block])
        return block, in_block // TOKENS_PER_TILE, in_block % TOKENS_PER_TILE


def rotate(
    x_THD: Float32,
    positions_T: NDArray[np.integer],
    inv_freq_FR: Float32,
    rope_scaling: float = 1.0,
    rope_start: int = 0,
) -> Float32:
    """Rotary embedding of heads [T, H, D] over their first 2 * R elements."""
    rows, half = inv_freq_FR.shape
    frequencies_T1R = inv_freq_FR[np.clip(positions_T - rope_start, 0, rows - 1), None]
    angles = positions_T.astype(np.float32)[:, None, None] * frequencies_T1R  # rounded to fp32
    cos = np.cos(angles.astype(np.float64)).astype(np.float32) * np.float32(rope_scaling)
    sin = np.sin(angles.astype(np.float64)).astype(np.float32) * np.float32(rope_scaling)
    first, second, rest = np.split(x_THD, [half, 2 * half], axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


def paged_attention(
    qkv: Float32,
    query_starts: Int32,
    context_lengths: Int32,
    block_tables: Int32,
    kv: NDArray[np.uint8],
    attributes: PagedAttentionAttributes,
    inv_freq: Float32 | None = None,
    q_norm: Float32 | None = None,
    k_norm: Float32 | None = None,
    sinks: Float32 | None = None,
) -> Float32:
    """The output, [T, Hq * D]. Writes K and V of the step into `kv`, a C-contiguous pool [num_blocks, block_bytes].

    In a kvrow layout, too, qkv and output are fp32 here: a device's qkv is widened first, and its output is this one
    rounded.
    """
    num_tokens = qkv.shape[0]
    num_q, num_kv = attributes.num_heads, attributes.num_kv_heads
    q, k, v = np.split(qkv.reshape(num_tokens, -1, attributes.head_dim), [num_q, num_q + num_kv], axis=1)
    lengths = np.diff(query_starts)
    positions = np.concatenate([np.arange(end - rows, end) for rows, end in zip(lengths, context_lengths, strict=True)])
    if q_norm is not None and k_norm is not None:
        norm = RmsNormAttributes(attributes.qk_norm_epsilon)
        q, k = rms_norm(q, q_norm, norm)[0], rms_norm(k, k_norm, norm)[0]  # over the last axis, D
    if inv_freq is not None:
        q, k = (rotate(x, positions, inv_freq, attributes.rope_scaling, attributes.rope_start) for x in (q, k))
    pool = KvPool(kv, attributes)
    sequence_of_row = np.repeat(np.arange(len(lengths)), lengths)
    for row in range(num_tokens):
        pool.write(block_tables[sequence_of_row[row]], int(positions[row]), k[row], v[row])
    q = q.astype(pool.element_type).astype(np.float32)
    output = np.empty((num_tokens, num_q, attributes.head_dim), np.float32)
    for s, context_length in enumerate(context_lengths):
        # From the first tile that any row sees; `cached` are the K or V of positions start, start + 1 ...
        start = attributes.first_visible(int(positions[query_starts[s]])) // TOKENS_PER_TILE * TOKENS_PER_TILE
        cached = pool.read(block_tables[s], range(start, int(context_length)))
        for row in range(int(query_starts[s]), int(query_starts[s + 1])):
            position = int(positions[row])
            first = attributes.first_visible(position)
            k_seen, v_seen = (x[:, first - start : position + 1 - start] for x in cached)
            output[row] = _attend(q[row], k_seen, v_seen, first, attributes, pool.element_type, sinks)
    return output.reshape(num_tokens, -1)


def _attend(
    q_HD: Float32,
    k_KJD: Float32,
    v_KJD: Float32,
    first_position: int,
    attributes: PagedAttentionAttributes,
    element_type: np.dtype[Any],
    sinks_H: Float32 | None,
) -> NDArray[np.float64]:
    """Attention of one row, H query heads, to J tokens of K KV heads, split by split, then to the sinks.

    The position of the first token says where splits end.
    """
    num_heads, dim = q_HD.shape
    q_KGD = q_HD.astype(np.float64).reshape(k_KJD.shape[0], -1, dim)
    max_KG = np.full(q_KGD.shape[:2], -np.inf)
    sum_KG = np.zeros(q_KGD.shape[:2])
    weighted_KGD = np.zeros(q_KGD.shape)
    for start in range(-(first_position % TOKENS_PER_SPLIT), k_KJD.shape[1], TOKENS_PER_SPLIT):
        split = slice(max(0, start), start + TOKENS_PER_SPLIT)
        x_KGJ = attributes.scale * (q_KGD @ k_KJD[:, split].transpose(0, 2, 1))
        if attributes.logit_softcap:
            x_KGJ = attributes.logit_softcap * np.tanh(x_KGJ / attributes.logit_softcap)
        split_max_KG = x_KGJ.max(axis=-1)
        e_KGJ = np.exp(x_KGJ - split_max_KG[..., None])
        rounded_KGJ = e_KGJ.astype(element_type).astype(np.float64) if element_type.itemsize == 2 else e_KGJ
        new_max_KG = np.maximum(max_KG, split_max_KG)
        f_KG, g_KG = np.exp(max_KG - new_max_KG), np.exp(split_max_KG - new_max_KG)
        sum_KG = sum_KG * f_KG + e_KGJ.sum(axis=-1) * g_KG
        weighted_KGD = weighted_KGD * f_KG[..., None] + (rounded_KGJ @ v_KJD[:, split]) * g_KG[..., None]
        max_KG = new_max_KG
    if sinks_H is not None:
        sinks_KG = sinks_H.astype(np.float64).reshape(max_KG.shape)
        new_max_KG = np.maximum(max_KG, sinks_KG)
        f_KG = np.exp(max_KG - new_max_KG)
        sum_KG = sum_KG * f_KG + np.exp(sinks_KG - new_max_KG)
        weighted_KGD = weighted_KGD * f_KG[..., None]
    result: NDArray[np.float64] = (weighted_KGD / sum_KG[..., None]).reshape(num_heads, dim)
    return result
