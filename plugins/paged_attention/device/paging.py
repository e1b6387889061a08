"""Where things lie: the sequence of a row or tile, and the pool rows of a tile of tokens.

N = tokens per block, D = head_dim, J = tokens of a tile.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton  # noqa: TID253  imported only where kernels are compiled or interpreted
import triton.language as tl  # noqa: TID253


@triton.constexpr_function
def padded_dim(dim: int) -> int:
    """D padded: a power of two, and at least the 16 that tl.dot sums over."""
    return max(16, 1 << (dim - 1).bit_length())


@triton.jit
def sequence_of_row(query_starts, row, num_sequences):
    """The sequence that owns a row of the step: the last one that starts at or before it.

    All starts are read at once, 128 by 128: a binary search would wait for memory at each of its steps.
    """
    LANES: tl.constexpr = 128
    count = 0
    for base in range(0, num_sequences, LANES):
        s = base + tl.arange(0, LANES)
        starts = tl.load(query_starts + s, mask=s < num_sequences, other=2147483647)
        count += tl.sum((starts <= row).to(tl.int32))
    return count - 1


@triton.jit
def sequence_of_tile(query_starts, tile, num_sequences, ROWS: tl.constexpr):
    """The sequence that owns a row tile, where the first tile of sequence s is query_starts[s] // ROWS + s.

    So a sequence has room for one tile more than its rows fill in whole tiles, which is enough for any start, and the
    number of tiles, T // ROWS + S, depends on shapes only. A tile that is not needed has a first row past the end.
    """
    LANES: tl.constexpr = 128
    count = 0
    for base in range(0, num_sequences, LANES):
        s = base + tl.arange(0, LANES)
        is_sequence = s < num_sequences
        starts = tl.load(query_starts + s, mask=is_sequence, other=0)
        count += tl.sum((is_sequence & (starts // ROWS + s <= tile)).to(tl.int32))
    return count - 1


@triton.jit
def key_pointers(
    kv_head, table, start, needed_J, BLOCK_ELEMENTS: tl.constexpr, N: tl.constexpr, D: tl.constexpr, J: tl.constexpr
):
    """Pointers [J, D padded] to K of tokens start .. start + J - 1; V of the same token lies N * D elements behind.

    kv_head points to the head in block 0. `start` is a multiple of J, and of the tokens at least one is needed.
    Offsets of blocks are 64 bits wide, as a pool has more than 2^31 elements; all others 32.
    """
    d = tl.arange(0, padded_dim(D))
    j = tl.arange(0, J)
    if N % J == 0:
        # The tile lies in one block: one id, one 64-bit product.
        block = tl.load(table + start // N).to(tl.int64)
        rows = kv_head + block * BLOCK_ELEMENTS + (start % N) * D
        pointers = rows + (j[:, None] * D + d[None, :])
    else:
        # An id for each token: neighbours read the same word, which the first level cache serves.
        tokens = start + j
        blocks = tl.load(table + tokens // N, mask=needed_J, other=0).to(tl.int64)
        rows_J = blocks * BLOCK_ELEMENTS + (tokens % N) * D
        pointers = kv_head + (rows_J[:, None] + d[None, :])
    return pointers
