"""Phase 2 of PagedAttention for prompt chunks: sequences with more than one row in the step.

T = tokens, S = sequences, B = width of the block table, HQ and HKV = query and KV heads, G = HQ / HKV, D = head_dim,
N = tokens per block, R = rows of a program, M = BLOCK_M >= R * G, J = tokens of a tile of keys.

A program does R rows of one sequence with the G query heads of one KV head: they share K and V, so they stand side by
side in one matrix [M, D], row after row. It walks over tiles of J tokens, aligned to position 0, in ascending order:

    positions    | window edge | seen by every row | diagonal |
    tiles        | masked      | whole, no masks   | masked   |

Floor: 4 * D operations for each query head and visible position: a chunk of 8192 tokens, 32 heads of 128 and no window
is 0.55 TFLOP, 0.56 ms at 990 TFLOP/s (H200) and 3.3 ms at 165 (4090, fp32 sums). K and V are read T / R times, mostly
from the second level cache: programs of one KV head follow each other.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton  # noqa: TID253  imported only where kernels are compiled or interpreted
import triton.language as tl  # noqa: TID253

from precast.plugins.paged_attention.device.paging import key_pointers, padded_dim, sequence_of_tile
from precast.plugins.paged_attention.device.softmax import add_sink, add_tile


@triton.jit
def attend_masked(
    q_MD, kv_head, table, start, position_M, max_M, sum_M, weighted_MD,
    first_seen, last_position,
    BLOCK_ELEMENTS: tl.constexpr, N: tl.constexpr, D: tl.constexpr, J: tl.constexpr,
    SCALE_LOG2: tl.constexpr, TANH_SCALE: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """A tile that some rows see only in part. Tokens outside first_seen .. last_position are not loaded.

    0 times NaN is NaN: a token whose v is not finite would reach rows that do not see it through the product. Such
    elements are taken out, and put back as NaN for the rows that see them.
    """
    tokens_J = start + tl.arange(0, J)
    needed_J = (tokens_J >= first_seen) & (tokens_J <= last_position)
    pointers_JD = key_pointers(kv_head, table, start, needed_J, BLOCK_ELEMENTS, N, D, J)
    mask_JD = needed_J[:, None] & (tl.arange(0, padded_dim(D)) < D)[None, :]
    k_JD = tl.load(pointers_JD, mask=mask_JD, other=0.0)
    v_JD = tl.load(pointers_JD + N * D, mask=mask_JD, other=0.0)
    visible_MJ = tokens_J[None, :] <= position_M[:, None]
    if WINDOW > 0:
        visible_MJ &= tokens_J[None, :] > position_M[:, None] - WINDOW
    is_finite_JD = tl.abs(v_JD.to(tl.float32)) < float("inf")
    finite_v_JD = tl.where(is_finite_JD, v_JD, 0.0).to(v_JD.dtype)
    scores_MJ = tl.dot(q_MD, tl.trans(k_JD))
    max_M, sum_M, weighted_MD = add_tile(
        scores_MJ, visible_MJ, finite_v_JD, max_M, sum_M, weighted_MD, SCALE_LOG2, TANH_SCALE, MASKED=True
    )
    if tl.min(tl.min(is_finite_JD.to(tl.int32), axis=1), axis=0) == 0:
        num_seen_MD = tl.dot(visible_MJ.to(v_JD.dtype), tl.where(is_finite_JD, 0.0, 1.0).to(v_JD.dtype))
        weighted_MD = tl.where(num_seen_MD > 0, float("nan"), weighted_MD)
    return max_M, sum_M, weighted_MD


@triton.jit
def attend_whole(
    q_MD, kv_head, table, start, max_M, sum_M, weighted_MD,
    BLOCK_ELEMENTS: tl.constexpr, N: tl.constexpr, D: tl.constexpr, J: tl.constexpr,
    SCALE_LOG2: tl.constexpr, TANH_SCALE: tl.constexpr,
):  # fmt: skip
    """A tile that every row sees whole: no masks, except where D is padded."""
    D_PADDED: tl.constexpr = padded_dim(D)
    needed_J = tl.full([J], True, tl.int1)
    pointers_JD = key_pointers(kv_head, table, start, needed_J, BLOCK_ELEMENTS, N, D, J)
    if D_PADDED == D:
        k_JD = tl.load(pointers_JD)
        v_JD = tl.load(pointers_JD + N * D)
    else:
        mask_1D = (tl.arange(0, D_PADDED) < D)[None, :]
        k_JD = tl.load(pointers_JD, mask=mask_1D, other=0.0)
        v_JD = tl.load(pointers_JD + N * D, mask=mask_1D, other=0.0)
    scores_MJ = tl.dot(q_MD, tl.trans(k_JD))
    return add_tile(scores_MJ, scores_MJ, v_JD, max_M, sum_M, weighted_MD, SCALE_LOG2, TANH_SCALE, MASKED=False)


@triton.jit
def paged_attention_context(
    queries,  # element type [T, HQ, D], from paged_attention_write
    query_starts,  # int32 [S + 1]
    context_lengths,  # int32 [S]
    block_tables,  # int32 [S, B]
    kv,  # element type, the pool
    sinks,  # fp32 [HQ], None without sinks
    output,  # element type [T, HQ * D], written
    num_sequences,
    table_width,
    HQ: tl.constexpr,
    HKV: tl.constexpr,
    D: tl.constexpr,
    N: tl.constexpr,
    WINDOW: tl.constexpr,
    SCALE_LOG2: tl.constexpr,
    TANH_SCALE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    J: tl.constexpr,
):
    G: tl.constexpr = HQ // HKV
    R: tl.constexpr = BLOCK_M // G
    D_PADDED: tl.constexpr = padded_dim(D)
    BLOCK_ELEMENTS: tl.constexpr = 2 * HKV * N * D
    # The last tiles of a prompt see most: they start first, so that none is left over at the end.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    head = tl.program_id(1)
    s = sequence_of_tile(query_starts, tile, num_sequences, R)
    start_row = tl.load(query_starts + s)
    end_row = tl.load(query_starts + s + 1)
    first_row = start_row + (tile - (start_row // R + s)) * R
    if end_row - start_row == 1:
        return  # the decode kernel's
    if first_row >= end_row:
        return  # no such tile

    m = tl.arange(0, BLOCK_M)
    row_M = first_row + m // G
    is_row_M = (m < R * G) & (row_M < end_row)
    position_of_row_0 = tl.load(context_lengths + s) - end_row
    position_M = tl.where(is_row_M, position_of_row_0 + row_M, -1)
    first_position = position_of_row_0 + first_row
    last_position = position_of_row_0 + tl.minimum(first_row + R, end_row) - 1
    first_seen = 0
    seen_by_all_from = 0
    if WINDOW > 0:
        first_seen = tl.maximum(first_position - WINDOW + 1, 0)
        seen_by_all_from = tl.maximum(last_position - WINDOW + 1, 0)
    whole_from = (seen_by_all_from + J - 1) // J * J
    whole_to = (first_position + 1) // J * J

    d = tl.arange(0, D_PADDED)
    offsets_MD = ((m // G) * (HQ * D) + (head * G + m % G) * D)[:, None] + d[None, :]
    mask_MD = is_row_M[:, None] & (d < D)[None, :]
    q_MD = tl.load(queries + first_row.to(tl.int64) * (HQ * D) + offsets_MD, mask=mask_MD, other=0.0)
    kv_head = kv + head * (2 * N * D)
    table = block_tables + s * table_width
    max_M = tl.full([BLOCK_M], float("-inf"), tl.float32)
    sum_M = tl.zeros([BLOCK_M], tl.float32)
    weighted_MD = tl.zeros([BLOCK_M, D_PADDED], tl.float32)

    if WINDOW > 0:
        for start in tl.range(first_seen // J * J, tl.minimum(whole_from, last_position + 1), J, num_stages=1):
            max_M, sum_M, weighted_MD = attend_masked(
                q_MD, kv_head, table, start, position_M, max_M, sum_M, weighted_MD, first_seen, last_position,
                BLOCK_ELEMENTS, N, D, J, SCALE_LOG2, TANH_SCALE, WINDOW,
            )  # fmt: skip
    for start in tl.range(whole_from, whole_to, J):
        max_M, sum_M, weighted_MD = attend_whole(
            q_MD, kv_head, table, start, max_M, sum_M, weighted_MD, BLOCK_ELEMENTS, N, D, J, SCALE_LOG2, TANH_SCALE
        )
    for start in tl.range(tl.maximum(whole_from, whole_to), last_position + 1, J, num_stages=1):
        max_M, sum_M, weighted_MD = attend_masked(
            q_MD, kv_head, table, start, position_M, max_M, sum_M, weighted_MD, first_seen, last_position,
            BLOCK_ELEMENTS, N, D, J, SCALE_LOG2, TANH_SCALE, WINDOW,
        )  # fmt: skip

    if sinks is not None:
        factor_M, sum_M = add_sink(sinks, head * G + m % G, max_M, sum_M)
        weighted_MD *= factor_M[:, None]
    result_MD = (weighted_MD / sum_M[:, None]).to(output.dtype.element_ty)
    tl.store(output + first_row.to(tl.int64) * (HQ * D) + offsets_MD, result_MD, mask=mask_MD)
