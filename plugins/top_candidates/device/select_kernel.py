"""TopCandidates: of each chunk of a row a few logits among which its K largest are.

R = rows, V = vocabulary, J = logits of a chunk, C = chunks of a row, K = candidates, G = a power of two from K on,
S = slots of a chunk, at least K, P = threads, X = vectors of a thread, each of 4 logits.

A program does one chunk of one row, all of it in registers, so logits are read once. Nothing is sorted; a threshold is
sought such that

    at most S logits are above it, and at least K are not below it.

All that are above it are taken, and all that equal it if these are S at most together, else those with the smallest
ids, so many that between K and S are taken. Whichever K are the largest with the smaller ids first, they are among
these.

The first threshold tried is the smallest of the largest logits of G groups, which at least G logits are not below; of
random logits some G * (log(G) + 0.6) are above it. It is raised by bisection, 32 times at most, 2 or 3 times where
logits are normally distributed, 20 times where one is far from all others. Each time the chunk's logits are counted,
in registers.

Floor: 4 * R * V bytes: 256 rows of 128256 logits are 131 MB, 27 us at 4.8 TB/s. Estimates, not measurements, for this V
and 132 multiprocessors of 4 instructions a cycle at 1.7 GHz: a warp has some 960 instructions for 512 logits, a row
250,000; with 60% of the slots used, two launches apart, one row takes 5 us, 32 rows 15 us, 256 rows 120 us, and five
times as long where every bisection is needed.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton  # noqa: TID253  imported only where kernels are compiled or interpreted
import triton.language as tl  # noqa: TID253

from precast.plugins.top_candidates.device.order import LEAST, order_of


@triton.jit
def top_candidates_select(
    logits,  # fp32 [R, V]
    slot_id,  # int32 [R, C, S], written; from V on in a slot without a logit
    V: tl.constexpr,
    K: tl.constexpr,
    G: tl.constexpr,
    J: tl.constexpr,
    S: tl.constexpr,
    P: tl.constexpr,
):
    r = tl.program_id(0).to(tl.int64)  # R * V may pass 2^31
    chunk = tl.program_id(1)
    j = tl.arange(0, J)
    ids_J = chunk * J + j
    order_J = order_of(tl.load(logits + r * V + ids_J, mask=ids_J < V, other=0.0))
    order_J = tl.where(ids_J < V, order_J, LEAST)

    largest_P = tl.max(tl.max(tl.reshape(order_J, [J // (4 * P), P, 4]), axis=2), axis=0)
    largest_G = tl.max(tl.reshape(largest_P, [G, P // G]), axis=1)
    threshold = tl.min(largest_G, axis=0)
    num_above = tl.sum((order_J > threshold).to(tl.int32), axis=0)
    low = threshold
    high = tl.max(largest_G, axis=0)
    while num_above > S:
        # More than S are above low, less than K are above high.
        threshold = (low | high) - ((low ^ high) >> 1)  # half way, rounded up
        num = tl.sum((order_J > threshold).to(tl.int32), axis=0)
        # If threshold - 1 is low, more than S are not below the threshold, many of which equal it.
        num_above = tl.where((num >= K) | (threshold == low + 1), num, num_above)
        high = tl.where(num > S, high, threshold)
        low = tl.where(num > S, threshold, low)

    end = J
    num_taken = tl.sum((order_J >= threshold).to(tl.int32), axis=0)
    enough = 0
    too_many = J
    while num_taken > S:
        # Those before too_many that equal the threshold are too many, those before enough are not enough.
        end = (enough + too_many) // 2
        num = num_above + tl.sum(((order_J == threshold) & (j < end)).to(tl.int32), axis=0)
        num_taken = tl.where(num >= K, num, num_taken)
        too_many = tl.where(num > S, end, too_many)
        enough = tl.where(num > S, enough, end)

    is_taken_J = (order_J > threshold) | ((order_J == threshold) & (j < end))
    taken_XP4 = tl.reshape(is_taken_J.to(tl.int32), [J // (4 * P), P, 4])
    num_XP = tl.sum(taken_XP4, axis=2)
    num_P = tl.sum(num_XP, axis=0)
    before_P = tl.cumsum(num_P, axis=0) - num_P
    before_XP = before_P[None, :] + tl.cumsum(num_XP, axis=0) - num_XP
    slot_XP4 = before_XP[:, :, None] + tl.cumsum(taken_XP4, axis=2) - taken_XP4
    slots = slot_id + (r * tl.num_programs(1) + chunk) * S
    tl.store(slots + tl.reshape(slot_XP4, [J]), ids_J, mask=is_taken_J)
    s = tl.arange(0, S)
    tl.store(slots + s, tl.full([S], V, tl.int32), mask=s >= num_taken)
