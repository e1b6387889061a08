"""Phase 2 of PagedAttention for sequences with one row in the step: the partial results of spans become the output.

S = sequences, HQ = query heads, D = head_dim, P = room for spans of a row.

A program does one row and one query head: with M = max m[i], output[d] is the sum of a[i][d] * 2^(m[i] - M) over the
same sum of l[i], spans in ascending order. The sink of the head, if there is one, is merged after the last span.

Floor: spans * HQ * D * 4 bytes for each sequence, just written and mostly still in the second level cache: 64
sequences of 8 spans and 32 heads of 128 are 8 MB, 2 us at 4.8 TB/s. The launch takes longer.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton  # noqa: TID253  imported only where kernels are compiled or interpreted
import triton.language as tl  # noqa: TID253

from precast.plugins.paged_attention.device.softmax import add_sink
from precast.plugins.paged_attention.device.spans import spans_of


@triton.jit
def paged_attention_merge(
    query_starts,  # int32 [S + 1]
    context_lengths,  # int32 [S]
    partial_max,  # fp32 [S, P, HQ]
    partial_sum,  # fp32 [S, P, HQ]
    partial_weighted,  # fp32 [S, P, HQ, D]
    sinks,  # fp32 [HQ], None without sinks
    output,  # element type [T, HQ * D], written
    partials_per_row,
    HQ: tl.constexpr,
    D: tl.constexpr,
    WINDOW: tl.constexpr,
    SPLIT: tl.constexpr,
    MAX_SPANS: tl.constexpr,
):
    D_PADDED: tl.constexpr = triton.next_power_of_2(D)
    s = tl.program_id(0)
    head = tl.program_id(1)
    row = tl.load(query_starts + s)
    if tl.load(query_starts + s + 1) - row != 1:
        return  # the context kernel's
    _, _, _, num_spans = spans_of(tl.load(context_lengths + s), WINDOW, SPLIT, MAX_SPANS)

    first = s.to(tl.int64) * partials_per_row * HQ + head
    i = tl.arange(0, triton.next_power_of_2(MAX_SPANS))
    maxima = tl.load(partial_max + first + i * HQ, mask=i < num_spans, other=float("-inf"))
    overall_max = tl.max(maxima, axis=0)
    d = tl.arange(0, D_PADDED)
    total = 0.0
    weighted_D = tl.zeros([D_PADDED], tl.float32)
    for span in tl.range(0, num_spans, num_stages=4):
        slot = first + span * HQ
        factor = tl.math.exp2(tl.load(partial_max + slot) - overall_max)
        total += tl.load(partial_sum + slot) * factor
        weighted_D += tl.load(partial_weighted + slot * D + d, mask=d < D, other=0.0) * factor
    if sinks is not None:
        factor, total = add_sink(sinks, head, overall_max, total)
        weighted_D *= factor
    result_D = (weighted_D / total).to(output.dtype.element_ty)
    tl.store(output + row.to(tl.int64) * (HQ * D) + head * D + d, result_D, mask=d < D)
