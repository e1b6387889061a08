"""Where the inputs and outputs of a step lie: one piece of memory each, so that one copy moves them.

V = vocabulary, K = candidates of a row; R, S, T as in shapes.py.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from precast.runtime.device.shapes import StepShape
from precast.runtime.device.step import Step

_ALIGNMENT = 256
"""Of addresses on a device, which kernels read in vectors."""


@dataclass(frozen=True)
class Part:
    """An array inside a piece of memory. `offset` in bytes, a multiple of 256; elements are of 4 bytes."""

    name: str
    offset: int
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return 4 * math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """Parts one after the other. A larger shape never has a smaller layout."""

    parts: tuple[Part, ...]
    num_bytes: int

    def addresses(self, base: int) -> dict[str, int]:
        return {part.name: base + part.offset for part in self.parts}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {part.name: part.shape for part in self.parts}

    def view(self, memory: NDArray[np.uint8], name: str, dtype: type[np.generic]) -> NDArray[np.generic]:
        """A part of this piece of host memory, as an array."""
        part = next(part for part in self.parts if part.name == name)
        array: NDArray[np.generic] = memory[part.offset : part.offset + part.num_bytes].view(dtype).reshape(part.shape)
        return array


def _lay_out(shapes: Iterable[tuple[str, tuple[int, ...]]]) -> Layout:
    parts: list[Part] = []
    end = 0
    for name, shape in shapes:
        parts.append(Part(name, end, shape))
        end += -(-parts[-1].num_bytes // _ALIGNMENT) * _ALIGNMENT
    return Layout(tuple(parts), end)


@dataclass(frozen=True)
class StepInputs:
    """The inputs that a network has beside KV pools and weights, all int32.

    Attributes:
        tables: The names of the block tables, one for each KV group.
        resolves_tokens: Whether it has the input token_sources.
        has_logits: Whether it has the input logit_rows.
        scratch_block: A KV block that belongs to nobody: padding writes there.
    """

    tables: tuple[str, ...]
    resolves_tokens: bool
    has_logits: bool
    scratch_block: int = 0

    def with_scratch_block(self, block: int) -> StepInputs:
        return replace(self, scratch_block=block)

    def layout(self, shape: StepShape) -> Layout:
        """Where each input of a step of this shape lies."""
        sizes: list[tuple[str, tuple[int, ...]]] = [("token_ids", (shape.num_tokens,))]
        if self.resolves_tokens:
            sizes.append(("token_sources", (shape.num_tokens,)))
        sizes += [("query_starts", (shape.num_sequences + 1,)), ("context_lengths", (shape.num_sequences,))]
        sizes += [
            (name, (shape.num_sequences, width)) for name, width in zip(self.tables, shape.table_widths, strict=True)
        ]
        if self.has_logits:
            sizes.append(("logit_rows", (shape.num_rows,)))
        return _lay_out(sizes)

    def write(self, step: Step, layout: Layout, memory: NDArray[np.uint8]) -> None:
        """Write a step into host memory as `layout` has it.

        What is padded is a sequence of one token, at position 0, whose block is the scratch block, and a row of logits
        that nobody reads.

        Raises:
            ValueError: a token comes from a step for which it cannot, or the network takes no such tokens.
        """
        arrays: Mapping[str, NDArray[np.generic]] = {
            part.name: layout.view(memory, part.name, np.int32) for part in layout.parts
        }
        tokens, sequences = step.num_tokens, step.num_sequences
        _fill(arrays["token_ids"], step.token_ids, 0)
        if self.resolves_tokens:
            arrays["token_sources"][:] = -1
            arrays["token_sources"][step.token_sources["row"]] = step.token_sources["source_row"]
        elif len(step.token_sources):
            raise ValueError(f"step {step.id} has tokens that are not known, and the network takes none")
        starts = arrays["query_starts"]
        starts[: sequences + 1] = step.query_starts
        starts[sequences + 1 :] = np.arange(tokens + 1, tokens + len(starts) - sequences)
        _fill(arrays["context_lengths"], step.context_lengths, 1)
        for name, table in zip(self.tables, step.block_tables, strict=True):
            padded = arrays[name]
            padded[...] = -1
            # Columns beyond the longest sequence that the network takes are of no use.
            width = min(table.shape[1], padded.shape[1])
            padded[:sequences, :width] = table[:, :width]
            padded[sequences:, 0] = self.scratch_block
        if self.has_logits:
            _fill(arrays["logit_rows"], step.logit_rows, 0)


def _fill(array: NDArray[np.generic], values: NDArray[np.int32], rest: int) -> None:
    array[: len(values)] = values
    array[len(values) :] = rest


@dataclass(frozen=True)
class StepOutputs:
    """The outputs of a network that computes logits, beside the KV pools.

    Attributes:
        vocab_size: V.
        num_candidates: K; 0: it gives none.
        chooses_tokens: Whether it has the output tokens.
    """

    vocab_size: int
    num_candidates: int
    chooses_tokens: bool

    @functools.lru_cache(maxsize=64)  # noqa: B019 - there are as many of these as engines in a process, which is one
    def choices(self, num_rows: int) -> Layout:
        """Of everything but logits, for R rows."""
        sizes: list[tuple[str, tuple[int, ...]]] = [("tokens", (num_rows,))] if self.chooses_tokens else []
        if self.num_candidates:
            wide = (num_rows, self.num_candidates)
            sizes += [("candidate_ids", wide), ("candidate_logits", wide), ("log_sums", (num_rows,))]
        return _lay_out(sizes)

    def logits_bytes(self, num_rows: int) -> int:
        return 4 * num_rows * self.vocab_size


def row_runs(wanted: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """The rows that are wanted, as (first, behind the last) of each run of neighbours."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], wanted, [False])).astype(np.int8)))
    return [(int(first), int(end)) for first, end in edges.reshape(-1, 2)]
