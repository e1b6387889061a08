"""Phase 1 of PagedAttention: every token's q, k and v normed, rotated and rounded; k and v go to the pool.

T = tokens, S = sequences, B = width of the block table, HQ and HKV = query and KV heads, G = HQ / HKV, D = head_dim,
N = tokens per block, HALF = rotary_dim / 2 (0: no rotation), F = sets of frequencies.

A program does one token and some of its KV heads with their query heads. cos and sin are computed once for all of them;
a large step therefore gives each program all heads, a small one spreads them over programs (launches.py).

Floor: T * (2 * HQ + 4 * HKV) * D * 2 bytes, each of q, k and v read and written once, over the bandwidth of memory:
8192 tokens of 32 + 2*8 heads of 128 are 201 MB, 42 us at 4.8 TB/s and 200 us at 1 TB/s. There is no arithmetic to
speak of, so a program has one warp and many are resident.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton  # noqa: TID253  imported only where kernels are compiled or interpreted
import triton.language as tl  # noqa: TID253

from precast.plugins.paged_attention.device.paging import sequence_of_row
from precast.plugins.paged_attention.device.rotary import norm_and_rotate, sin_cos


@triton.jit
def paged_attention_write(
    qkv,  # element type [T, (HQ + 2*HKV) * D]
    query_starts,  # int32 [S + 1]
    context_lengths,  # int32 [S]
    block_tables,  # int32 [S, B]
    inv_freq,  # fp32 [F, HALF], None without rotation
    q_norm,  # fp32 [D], None without norm
    k_norm,  # fp32 [D], None without norm
    kv,  # element type, the pool
    queries,  # element type [T, HQ, D], written
    num_sequences,
    table_width,
    heads_per_program,
    HQ: tl.constexpr,
    HKV: tl.constexpr,
    D: tl.constexpr,
    N: tl.constexpr,
    HALF: tl.constexpr,
    F: tl.constexpr,
    ROPE_START: tl.constexpr,
    ROPE_SCALING: tl.constexpr,
    HAS_NORM: tl.constexpr,
    EPSILON: tl.constexpr,
):
    G: tl.constexpr = HQ // HKV
    row = tl.program_id(0)
    first_head = tl.program_id(1) * heads_per_program
    s = row
    if tl.num_programs(0) != num_sequences:  # else T == S, one row each
        s = sequence_of_row(query_starts, row, num_sequences)
    position = tl.load(context_lengths + s) - (tl.load(query_starts + s + 1) - row)
    block = tl.load(block_tables + s * table_width + position // N).to(tl.int64)
    kv_token = kv + block * (2 * HKV * N * D) + (position % N) * D
    qkv_row = qkv + row.to(tl.int64) * ((HQ + 2 * HKV) * D)
    queries_row = queries + row.to(tl.int64) * (HQ * D)

    if HALF > 0:
        i = tl.arange(0, triton.next_power_of_2(HALF))[None, :]
        frequencies = tl.minimum(tl.maximum(position - ROPE_START, 0), F - 1)
        angles = position.to(tl.float32) * tl.load(inv_freq + frequencies * HALF + i, mask=i < HALF, other=0.0)
        sine, cosine = sin_cos(angles)
        sine *= ROPE_SCALING
        cosine *= ROPE_SCALING
    else:
        sine = 0.0
        cosine = 1.0

    d = tl.arange(0, triton.next_power_of_2(D))
    for head in range(first_head, tl.minimum(first_head + heads_per_program, HKV)):
        q_offset = head * (G * D)
        norm_and_rotate(qkv_row + q_offset, queries_row + q_offset, q_norm, cosine, sine, G, D, HALF, HAS_NORM, EPSILON)
        k_target = kv_token + head * (2 * N * D)
        norm_and_rotate(qkv_row + (HQ + head) * D, k_target, k_norm, cosine, sine, 1, D, HALF, HAS_NORM, EPSILON)
        v = tl.load(qkv_row + (HQ + HKV + head) * D + d, mask=d < D, other=0.0)
        tl.store(k_target + N * D + d, v, mask=d < D)
