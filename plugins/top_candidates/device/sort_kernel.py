"""TopCandidates: the K largest of what was selected of a row's chunks, in order.

R = rows, V = vocabulary, N = slots of a row, T = slots of a tile, K = candidates, G = a power of two from K on.

A program does one row, tile after tile, and keeps the G largest so far. What is sorted are numbers of 64 bits: the
order of a logit above, the complement of its id below, so that of equal logits the smaller id comes first and no two
are equal. The logits come from the input, with all their bits.

Estimates, not measurements, for V = 128256, K = 64: a warp has some 1600 instructions, a row 26,000, of which each
exchange with another thread takes four times as long as others: 5 us for a row, the same for 32, 15 us for 256.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton  # noqa: TID253  imported only where kernels are compiled or interpreted
import triton.language as tl  # noqa: TID253

from precast.plugins.top_candidates.device.order import LEAST, order_of


@triton.jit
def top_candidates_sort(
    logits,  # fp32 [R, V]
    slot_id,  # int32 [R, N]; from V on in a slot without a logit
    candidate_ids,  # int32 [R, K], written
    candidate_logits,  # fp32 [R, K], written
    V: tl.constexpr,
    K: tl.constexpr,
    G: tl.constexpr,
    N: tl.constexpr,
    T: tl.constexpr,
):
    r = tl.program_id(0).to(tl.int64)
    best_G = tl.full([G], -0x8000000000000000, tl.int64)
    for start in range(0, N, T):
        slot_T = start + tl.arange(0, T)
        id_T = tl.load(slot_id + r * N + slot_T, mask=slot_T < N, other=V)
        order_T = order_of(tl.load(logits + r * V + id_T, mask=id_T < V, other=0.0))
        order_T = tl.where(id_T < V, order_T, LEAST)
        keys_T = (order_T.to(tl.int64) << 32) | (0x7FFFFFFF - id_T).to(tl.int64)
        # The larger of each pair of a falling and a rising list are the G largest, and fall and rise at most once.
        best_G = tl.bitonic_merge(tl.maximum(best_G, tl.flip(tl.topk(keys_T, G))), descending=True)
    id_G = 0x7FFFFFFF - (best_G & 0x7FFFFFFF).to(tl.int32)
    k = tl.arange(0, G)
    tl.store(candidate_ids + r * K + k, id_G, mask=k < K)
    tl.store(candidate_logits + r * K + k, tl.load(logits + r * V + id_G, mask=k < K), mask=k < K)
