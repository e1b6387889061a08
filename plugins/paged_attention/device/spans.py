"""How the decode kernel cuts a context into spans, and the merge kernel finds them again.

A span is a multiple of 512 tokens, aligned to position 0: as many splits of the schema as keep the number of spans of
a row within MAX_SPANS. Where spans begin depends on the row's position only, so a row's bits do too.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton  # noqa: TID253  imported only where kernels are compiled or interpreted
import triton.language as tl  # noqa: TID253


@triton.jit
def spans_of(context_length, WINDOW: tl.constexpr, SPLIT: tl.constexpr, MAX_SPANS: tl.constexpr):
    """(first position seen, tokens of a span, index of the first span, number of spans) of the last row of a context.

    Spans need not begin at the first position seen: one more is touched than a count of tokens tells.
    """
    first_seen = 0
    if WINDOW > 0:
        first_seen = tl.maximum(context_length - WINDOW, 0)
    num_splits = (context_length - first_seen + SPLIT - 1) // SPLIT
    span = (num_splits + MAX_SPANS - 2) // (MAX_SPANS - 1) * SPLIT
    first_span = first_seen // span
    return first_seen, span, first_span, (context_length - 1) // span - first_span + 1
