"""The shapes that steps are padded to, so that few of them occur: a graph of CUDA replays one shape only.

T = tokens, S = sequences, R = rows of logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from precast.runtime.device.step import Step

DECODE, CONTEXT = 0, 1
"""What TensorRT has an optimisation profile for each of: one token of each sequence, and any number."""
_LEAST_WIDTH = 8


@dataclass(frozen=True)
class StepShape:
    """What a step is padded to.

    Attributes:
        num_tokens, num_sequences, num_rows: T, S and R, each at least 1.
        table_widths: Of the block table of each KV group.
        profile: DECODE or CONTEXT.
    """

    num_tokens: int
    num_sequences: int
    num_rows: int
    table_widths: tuple[int, ...]
    profile: int

    def size_of(self, symbol: str, size: int) -> int:
        """Of a dimension of an output that the network calls `symbol`, where it leaves it open."""
        if size >= 0:
            return size
        return {"num_tokens": self.num_tokens, "num_logit_rows": self.num_rows}[symbol]

    @property
    def repeats(self) -> bool:
        """Whether many steps have this shape, so that a graph of it pays."""
        return self.profile == DECODE


class ShapeBook:
    """Chooses shapes within the network's limits.

    Args:
        max_batch_size: Most sequences of a step that the network takes.
        max_widths: The widest block table of each KV group that the network takes.
    """

    def __init__(self, max_batch_size: int, max_widths: Sequence[int]) -> None:
        self._max_batch_size, self._max_widths = max_batch_size, tuple(max_widths)

    def shape_of(self, step: Step) -> StepShape:
        """The least shape that the step fits into.

        A step that only decodes has a power of two of sequences, all with a row of logits; of others only the table's
        width is rounded up, since padded tokens of a prompt would have to be computed.
        """
        widths = self._widths([table.shape[1] for table in step.block_tables])
        if step.num_tokens == step.num_sequences:
            size = min(_power_of_two(step.num_sequences), self._max_batch_size)
            return StepShape(size, size, size, widths, DECODE)
        return StepShape(step.num_tokens, step.num_sequences, max(1, step.num_rows), widths, CONTEXT)

    def largest(self, max_num_tokens: int, width: int) -> StepShape:
        """Of steps of up to so many tokens, and block tables up to so wide."""
        widths = self._widths([width] * len(self._max_widths))
        return StepShape(max_num_tokens, self._max_batch_size, self._max_batch_size, widths, CONTEXT)

    def _widths(self, widths: Sequence[int]) -> tuple[int, ...]:
        return tuple(
            min(_power_of_two(max(width, _LEAST_WIDTH)), most)
            for width, most in zip(widths, self._max_widths, strict=True)
        )


def _power_of_two(count: int) -> int:
    """The least one that is not below `count`."""
    return 1 << (count - 1).bit_length()
