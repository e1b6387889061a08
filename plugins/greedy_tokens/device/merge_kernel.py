"""GreedyTokens: the partial results of a row's chunks become its token and its log_sum.

R = rows, C = chunks of a row.

A program does one row: with M the largest of partial_max, log_sum = M + log(sum of partial_sum * exp(partial_max - M)).

Floor: 12 * R * C bytes, just written and still in the second level cache: the launch takes longer.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton  # noqa: TID253  imported only where kernels are compiled or interpreted
import triton.language as tl  # noqa: TID253


@triton.jit
def greedy_tokens_merge(
    partial_max,  # fp32 [R, C]
    partial_token,  # int32 [R, C]
    partial_sum,  # fp32 [R, C]
    tokens,  # int32 [R], written
    log_sums,  # fp32 [R], written
    V: tl.constexpr,
    C: tl.constexpr,
):
    r = tl.program_id(0)
    c = tl.arange(0, triton.next_power_of_2(C))
    slots_C = r.to(tl.int64) * C + c
    max_C = tl.load(partial_max + slots_C, mask=c < C, other=float("-inf"))
    token_C = tl.load(partial_token + slots_C, mask=c < C, other=0)
    sum_C = tl.load(partial_sum + slots_C, mask=c < C, other=0.0)
    largest = tl.max(max_C, axis=0)
    # Padding is among the largest of a row of only -inf, whose token is 0 as well.
    token = tl.min(tl.where(max_C == largest, token_C, V), axis=0)
    tl.store(tokens + r, tl.where(tl.max(token_C, axis=0) == V, V, token))  # V of any chunk: it has a NaN
    base = tl.where(largest == float("-inf"), 0.0, largest)  # no -inf - -inf
    total = tl.sum(sum_C * tl.exp(max_C - base), axis=0)
    tl.store(log_sums + r, largest + tl.log(total))
