"""GreedyTokens: the largest logit of a chunk of a row, its id, and the sum of exponentials relative to it.

R = rows, V = vocabulary, J = logits of a chunk, C = chunks of a row.

A program does one chunk of one row, all of it in registers, so logits are read once. Chunks begin at multiples of J
whatever R is: a row of 151936 logits is 38 programs, which fill a GPU from four rows on, and one row alone takes as
long as one chunk.

Floor: 4 * R * V bytes: 256 rows of 151936 logits are 156 MB, 32 us at 4.8 TB/s. One row costs two launches.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton  # noqa: TID253  imported only where kernels are compiled or interpreted
import triton.language as tl  # noqa: TID253


@triton.jit
def greedy_tokens_partial(
    logits,  # fp32 [R, V]
    partial_max,  # fp32 [R, C], written; the largest logit that is no NaN, -inf where there is none
    partial_token,  # int32 [R, C], written; the smallest id with that logit, V where the chunk has a NaN
    partial_sum,  # fp32 [R, C], written; of exp(logit - largest); NaN where the chunk has a NaN or +inf
    V: tl.constexpr,
    J: tl.constexpr,
):
    r = tl.program_id(0).to(tl.int64)  # R * V may pass 2^31
    chunk = tl.program_id(1)
    ids_J = chunk * J + tl.arange(0, J)
    logits_J = tl.load(logits + r * V + ids_J, mask=ids_J < V, other=float("-inf"))
    is_nan_J = logits_J != logits_J  # noqa: PLR0124
    largest = tl.max(tl.where(is_nan_J, float("-inf"), logits_J), axis=0)
    # Ids from V on may be among the largest, of -inf, but never the smallest.
    token = tl.min(tl.where(logits_J == largest, ids_J, V), axis=0)
    token = tl.where(tl.max(is_nan_J.to(tl.int32), axis=0) > 0, V, token)
    base = tl.where(largest == float("-inf"), 0.0, largest)  # no -inf - -inf
    slot = r * tl.num_programs(1) + chunk
    tl.store(partial_max + slot, largest)
    tl.store(partial_token + slot, token)
    tl.store(partial_sum + slot, tl.sum(tl.exp(logits_J - base), axis=0))
