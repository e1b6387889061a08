"""Steps that mean nothing: of every shape of an engine, so that what TensorRT compiles for them is compiled."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from precast.runtime.device.session import DeviceSession
from precast.runtime.device.step import TOKEN_SOURCE, Step

_CONTEXT_TOKENS = (1 << 4, 1 << 8, 1 << 11, 1 << 13)
"""Prompts' kernels do not depend on their length, but TensorRT may choose others for long ones. How wide block tables
are concerns our own kernels only, which were compiled when the plan was built."""


_LEAST_REHEARSED = 64
"""Tokens of the smallest step: what is smaller fits where others were."""


def run_shapes(
    session: DeviceSession, *, max_batch_size: int, max_num_tokens: int, max_context: int, num_kv_groups: int
) -> int:
    """Run a step of each shape that decoding has, and prompts of some lengths. Returns how many steps.

    Every sequence has block 0 in every place: results mean nothing, and nothing stays that a request could see.

    Args:
        max_batch_size, max_num_tokens: Of a step.
        max_context: Tokens that a sequence may have.

    Raises:
        DeviceError: the device cannot compute one.
    """
    count = 0
    for step in _steps(max_batch_size, min(max_num_tokens, max_context), num_kv_groups):
        session.enqueue(step)
        session.collect(step.id)
        count = step.id
    session.forget()
    return count


def _steps(max_batch_size: int, max_prompt: int, num_kv_groups: int) -> Iterator[Step]:
    number = 0
    sizes = [1 << power for power in range((max_batch_size - 1).bit_length())] + [max_batch_size]
    for batch in sizes:
        number += 1
        yield _step(number, batch, 1, num_kv_groups)
    for tokens in (*(size for size in _CONTEXT_TOKENS if size < max_prompt), max_prompt):
        if tokens > 1:
            number += 1
            yield _step(number, 1, tokens, num_kv_groups)


def rehearsal_steps(
    max_batch_size: int, max_num_tokens: int, max_seq_len: int, table_width: int, num_kv_groups: int
) -> Iterator[Step]:
    """Steps that take as much memory as any may: the largest, then smaller ones.

    All have the widest block tables, with block 0 in every place, and as many sequences and rows of logits as there can
    be; one has the most tokens and one row. Smaller ones, because an allocator of which much is asked in another order
    may need more than for the largest: what it splits for one tensor is missing for the next.

    Args:
        max_seq_len: Tokens that a sequence may have.
    """
    number, tokens = 1, min(max_num_tokens, max_batch_size * max_seq_len)
    yield _wide_step(number, -(-tokens // max_seq_len), tokens, 1, table_width, num_kv_groups)
    while tokens >= 1:
        for size in dict.fromkeys((tokens, 3 * tokens // 4)):
            if size:
                number += 1
                sequences = min(max_batch_size, size)
                yield _wide_step(number, sequences, size, sequences, table_width, num_kv_groups)
        tokens = tokens // 2 if tokens >= 2 * _LEAST_REHEARSED else 0


def _wide_step(number: int, sequences: int, tokens: int, rows: int, table_width: int, num_kv_groups: int) -> Step:
    """New sequences of about equal length, the last `rows` of which have a row of logits."""
    starts = np.linspace(0, tokens, sequences + 1).astype(np.int32)
    return Step(
        id=number,
        token_ids=np.zeros(tokens, np.int32),
        query_starts=starts,
        context_lengths=np.diff(starts),
        block_tables=(np.zeros((sequences, table_width), np.int32),) * num_kv_groups,
        logit_rows=starts[1:][-rows:] - np.int32(1),
        needs_logits=np.zeros(rows, np.uint8),
        num_candidates=np.zeros(rows, np.int32),
        token_sources=np.empty(0, TOKEN_SOURCE),
    )


def _step(number: int, sequences: int, rows: int, num_kv_groups: int) -> Step:
    """New sequences with so many rows each."""
    return Step(
        id=number,
        token_ids=np.zeros(sequences * rows, np.int32),
        query_starts=np.arange(sequences + 1, dtype=np.int32) * np.int32(rows),
        context_lengths=np.full(sequences, rows, np.int32),
        # Of as many blocks as it can need: a block has at least one token.
        block_tables=(np.zeros((sequences, rows), np.int32),) * num_kv_groups,
        logit_rows=np.arange(1, sequences + 1, dtype=np.int32) * np.int32(rows) - np.int32(1),
        needs_logits=np.zeros(sequences, np.uint8),
        num_candidates=np.zeros(sequences, np.int32),
        token_sources=np.empty(0, TOKEN_SOURCE),
    )
