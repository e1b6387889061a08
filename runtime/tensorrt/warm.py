"""Runs the shapes of an engine once, so that everything TensorRT compiles for them is compiled, and keeps it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from precast.runtime.tensorrt.session import TensorRtSession
from precast.runtime.tensorrt.step import TOKEN_SOURCE, Step

_CONTEXT_TOKENS = (1 << 4, 1 << 8, 1 << 11, 1 << 13)
"""Prompts' kernels do not depend on their length, but TensorRT may choose others for long ones. How wide block tables
are concerns our own kernels only, which were compiled when the plan was built."""


def run_shapes(
    session: TensorRtSession, *, max_batch_size: int, max_num_tokens: int, max_context: int, num_kv_groups: int
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
