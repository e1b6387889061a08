"""Phase 2 of PagedAttention for sequences with one row in the step: partial results of spans of the context.

S = sequences, B = width of the block table, HQ and HKV = query and KV heads, G = HQ / HKV, D = head_dim, N = tokens per
block, J = tokens of a tile, Z = programs that share the spans of one row and KV head, P = room for spans of a row.

A program walks over spans z, z + Z, ... of a sequence (spans.py) for the G query heads of one KV head, and stores of
each span the maximum, the sum and the weighted values: exactly (m, l, a) of the schema for a longer split. G is padded
to 16 rows: the tensor core is idle anyway, and each byte of K and V is read once for all heads.

Floor: 4 * context * HKV * D bytes for each sequence over the bandwidth of memory: 64 contexts of 4096 tokens with 8
KV heads of 128 are 1.07 GB, 0.22 ms at 4.8 TB/s and 1.1 ms at 1 TB/s. Partial results add HQ / (64 * HKV) of it: 6 %
where G is 4.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton  # noqa: TID253  imported only where kernels are compiled or interpreted
import triton.language as tl  # noqa: TID253

from precast.plugins.paged_attention.device.paging import key_pointers, padded_dim
from precast.plugins.paged_attention.device.softmax import add_tile
from precast.plugins.paged_attention.device.spans import spans_of


@triton.jit
def paged_attention_decode(
    queries,  # element type [T, HQ, D], from paged_attention_write
    query_starts,  # int32 [S + 1]
    context_lengths,  # int32 [S]
    block_tables,  # int32 [S, B]
    kv,  # element type, the pool
    partial_max,  # fp32 [S, P, HQ], written; in units of log2
    partial_sum,  # fp32 [S, P, HQ], written
    partial_weighted,  # fp32 [S, P, HQ, D], written
    table_width,
    partials_per_row,
    HQ: tl.constexpr,
    HKV: tl.constexpr,
    D: tl.constexpr,
    N: tl.constexpr,
    WINDOW: tl.constexpr,
    SCALE_LOG2: tl.constexpr,
    TANH_SCALE: tl.constexpr,
    SPLIT: tl.constexpr,
    MAX_SPANS: tl.constexpr,
    BLOCK_G: tl.constexpr,
    J: tl.constexpr,
):
    G: tl.constexpr = HQ // HKV
    D_PADDED: tl.constexpr = padded_dim(D)
    s = tl.program_id(0)
    head = tl.program_id(1)
    row = tl.load(query_starts + s)
    if tl.load(query_starts + s + 1) - row != 1:
        return  # the context kernel's
    context_length = tl.load(context_lengths + s)
    first_seen, span, first_span, num_spans = spans_of(context_length, WINDOW, SPLIT, MAX_SPANS)
    if tl.program_id(2) >= num_spans:
        return

    g = tl.arange(0, BLOCK_G)
    d = tl.arange(0, D_PADDED)
    is_dim_1D = (d < D)[None, :]
    mask_GD = (g < G)[:, None] & is_dim_1D
    offsets_GD = g[:, None] * D + d[None, :]
    q_GD = tl.load(queries + row.to(tl.int64) * (HQ * D) + head * (G * D) + offsets_GD, mask=mask_GD, other=0.0)
    kv_head = kv + head * (2 * N * D)
    table = block_tables + s * table_width
    for i in range(tl.program_id(2), num_spans, tl.num_programs(2)):
        span_start = (first_span + i) * span
        end = tl.minimum(span_start + span, context_length)
        max_G = tl.full([BLOCK_G], float("-inf"), tl.float32)
        sum_G = tl.zeros([BLOCK_G], tl.float32)
        weighted_GD = tl.zeros([BLOCK_G, D_PADDED], tl.float32)
        for start in tl.range(tl.maximum(span_start, first_seen) // J * J, end, J):
            tokens_J = start + tl.arange(0, J)
            needed_J = (tokens_J >= first_seen) & (tokens_J < end)
            pointers_JD = key_pointers(kv_head, table, start, needed_J, 2 * HKV * N * D, N, D, J)
            mask_JD = needed_J[:, None] & is_dim_1D
            k_JD = tl.load(pointers_JD, mask=mask_JD, other=0.0)
            v_JD = tl.load(pointers_JD + N * D, mask=mask_JD, other=0.0)
            max_G, sum_G, weighted_GD = add_tile(
                tl.dot(q_GD, tl.trans(k_JD)),
                needed_J[None, :],
                v_JD,
                max_G,
                sum_G,
                weighted_GD,
                SCALE_LOG2,
                TANH_SCALE,
                MASKED=True,
            )
        # S * P * HQ * D may pass 2^31.
        slot = (s.to(tl.int64) * partials_per_row + i) * HQ + head * G
        tl.store(partial_max + slot + g, max_G, mask=g < G)
        tl.store(partial_sum + slot + g, sum_G, mask=g < G)
        tl.store(partial_weighted + slot * D + offsets_GD, weighted_GD, mask=mask_GD)
