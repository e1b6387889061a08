"""A step as the library hands it over, and what it gave: arrays over the structs of ``precast.h``."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precast.runtime.structs import StepStruct

TOKEN_SOURCE = np.dtype([("row", np.int32), ("source_row", np.int32), ("source_step", np.uint64)])
"""``precast_token_source_t``."""

Int32s = NDArray[np.int32]


@dataclass(frozen=True)
class Step:
    """One forward pass of T tokens and S sequences, described completely; ``precast_step_t`` explains each field.

    Attributes:
        token_ids: int32 [T]; -1 where a source has the row.
        query_starts: int32 [S + 1].
        context_lengths: int32 [S].
        block_tables: For each KV group int32 [S, its width].
        logit_rows: int32 [R], R >= 0.
        needs_logits: uint8 [R].
        num_candidates: int32 [R].
        token_sources: TOKEN_SOURCE [U].
    """

    id: int
    token_ids: Int32s
    query_starts: Int32s
    context_lengths: Int32s
    block_tables: tuple[Int32s, ...]
    logit_rows: Int32s
    needs_logits: NDArray[np.uint8]
    num_candidates: Int32s
    token_sources: NDArray[Any]

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_sequences(self) -> int:
        return len(self.context_lengths)

    @property
    def num_rows(self) -> int:
        return len(self.logit_rows)


def read_step(struct: StepStruct) -> Step:
    """The struct's arrays, without copies: they are valid as long as the struct's are."""
    sequences, rows = struct.num_sequences, struct.num_logit_rows
    widths = _array(struct.block_table_widths, np.int32, struct.num_kv_groups)
    tables = tuple(
        _array(struct.block_tables[group], np.int32, sequences * int(width)).reshape(sequences, int(width))
        for group, width in enumerate(widths)
    )
    return Step(
        id=struct.id,
        token_ids=_array(struct.token_ids, np.int32, struct.num_tokens),
        query_starts=_array(struct.query_starts, np.int32, sequences + 1),
        context_lengths=_array(struct.context_lengths, np.int32, sequences),
        block_tables=tables,
        logit_rows=_array(struct.logit_rows, np.int32, rows),
        needs_logits=_array(struct.needs_logits, np.uint8, rows),
        num_candidates=_array(struct.num_candidates, np.int32, rows),
        token_sources=_array(struct.token_sources, TOKEN_SOURCE, struct.num_token_sources),
    )


@dataclass(frozen=True)
class StepResult:
    """What a step gave, in arrays that stay as they are until the session's next call.

    Attributes:
        logits: float32 [rows with needs_logits, V].
        token_ids: int32 [R]; None where the session does not choose tokens.
        candidate_ids: int32 [C, K], C rows with num_candidates.
        candidate_logits: float32 [C, K].
        log_sums: float32 [C].
    """

    logits: NDArray[np.float32]
    token_ids: Int32s | None
    candidate_ids: Int32s
    candidate_logits: NDArray[np.float32]
    log_sums: NDArray[np.float32]


def _array(pointer: Any, dtype: Any, count: int) -> NDArray[Any]:
    """`count` elements at a pointer of ctypes, which may be NULL where there are none."""
    if count == 0:
        return np.empty(0, dtype)
    element = np.dtype(dtype)
    address = ctypes.cast(pointer, ctypes.c_void_p).value
    assert address is not None
    data = (ctypes.c_uint8 * (count * element.itemsize)).from_address(address)
    array: NDArray[Any] = np.frombuffer(data, element)
    return array
