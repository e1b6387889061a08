"""The session of one rank: enqueues steps on its GPU, and collects what they gave.

    enqueue n    pinned inputs of slot n --> device --> [ network ] --> device --> pinned outputs of slot n | event n
    enqueue n+1  the same, behind it on the same stream, before n is collected
    collect n    waits for event n, and reads slot n

Step n + 1 may be described before the tokens of step n are on the host: they stay on the device, and the network takes
them from there (builder/backends/lowering/choose_tokens.py).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from precast.runtime.device.buffers import Layout, StepInputs, StepOutputs, row_runs
from precast.runtime.device.device import Device, Event
from precast.runtime.device.network import Network
from precast.runtime.device.shapes import ShapeBook, StepShape
from precast.runtime.device.step import Step, StepResult

SLOTS = 2
"""Steps in flight: one that the device computes, and the next, so that it never waits for the host. More stages of a
pipeline have one each."""


ABANDONED: list[DeviceSession] = []
"""Sessions that were closed while steps were in flight that may never end. They stay until the process ends, and
nothing is waited for: whoever destroys what they run waits for the device."""


class Group(Protocol):
    """What a session does with the connection to other ranks; plugins do the rest."""

    def check(self) -> None:
        """Raises GroupError for what has gone wrong since the last call."""

    def abort(self) -> None:
        """Ends it, without waiting for others."""


@dataclass(frozen=True)
class DeviceBuffers:
    """Device memory that every step uses.

    Attributes:
        inputs: As many bytes as the largest step's.
        choices: Tokens and candidates of a step.
        logits: float32 [most rows, V].
        previous_tokens: int32 [most sequences]: the tokens of the step before, which the network reads.
    """

    inputs: int
    choices: int
    logits: int
    previous_tokens: int


@dataclass(frozen=True)
class Slot:
    """Pinned host memory of a step in flight, untouched from its enqueue to its collect."""

    inputs: NDArray[np.uint8]
    choices: NDArray[np.uint8]
    logits: NDArray[np.uint8]
    done: Event


@dataclass(frozen=True)
class _InFlight:
    step_id: int
    num_rows: int
    num_logits: int  # rows of them
    candidate_rows: NDArray[np.intp]
    choices: Layout
    slot: Slot


class DeviceSession:
    """Steps on one GPU, one behind the other.

    Args:
        device, network: Where and what; the network's contexts are made.
        inputs, outputs: What the network has. `outputs` is None where it computes no logits.
        shapes: What steps are padded to.
        buffers, slots: Memory for the largest step; as many slots as steps may be in flight.
        group: This rank's way to the others of its engine; None where it is alone.
    """

    def __init__(
        self,
        device: Device,
        network: Network,
        inputs: StepInputs,
        outputs: StepOutputs | None,
        shapes: ShapeBook,
        buffers: DeviceBuffers,
        slots: tuple[Slot, ...],
        group: Group | None = None,
    ) -> None:
        self._device, self._network = device, network
        self._inputs, self._outputs, self._shapes = inputs, outputs, shapes
        self._buffers, self._slots, self._group = buffers, slots, group
        self._layouts: dict[StepShape, Layout] = {}
        self._in_flight: deque[_InFlight] = deque()
        self._num_enqueued = 0
        self._is_enqueuing = False  # a step, a part of which may be on its way
        self._last_id = 0

    @property
    def max_in_flight(self) -> int:
        return len(self._slots)

    @property
    def chooses_tokens(self) -> bool:
        """Whether steps may have tokens that are not known yet, and results have tokens."""
        return self._inputs.resolves_tokens

    @property
    def max_candidates(self) -> int:
        return 0 if self._outputs is None else self._outputs.num_candidates

    def enqueue(self, step: Step) -> None:
        """Enqueue a step; returns at once. Its arrays are not read after that.

        Raises:
            DeviceError: TensorRT or the device refuses it.
            ValueError: it cannot be a step of this engine.
        """
        if len(self._in_flight) == len(self._slots):
            raise ValueError(f"step {step.id} is one more than the {len(self._slots)} that may be in flight")
        strangers = step.token_sources["source_step"] != self._last_id
        if strangers.any():
            source = int(step.token_sources["source_step"][np.argmax(strangers)])
            raise ValueError(f"step {step.id} has a token of step {source}; the step before it was {self._last_id}")
        slot = self._slots[self._num_enqueued % len(self._slots)]
        shape = self._shapes.shape_of(step)
        layout = self._layout_of(shape)
        self._inputs.write(step, layout, slot.inputs)
        self._is_enqueuing = True
        self._device.copy_in(self._buffers.inputs, slot.inputs[: layout.num_bytes])
        choices = Layout((), 0) if self._outputs is None else self._outputs.choices(shape.num_rows)
        if not self._network.replay(shape):
            addresses = layout.addresses(self._buffers.inputs) | choices.addresses(self._buffers.choices)
            self._network.run(shape, layout.shapes(), addresses)
        self._in_flight.append(self._read_back(step, choices, slot))
        self._device.record(slot.done)
        self._num_enqueued += 1
        self._last_id = step.id
        self._is_enqueuing = False

    def _layout_of(self, shape: StepShape) -> Layout:
        if not shape.repeats:
            return self._inputs.layout(shape)
        if shape not in self._layouts:
            self._layouts[shape] = self._inputs.layout(shape)
        return self._layouts[shape]

    def _read_back(self, step: Step, choices: Layout, slot: Slot) -> _InFlight:
        """Enqueue the copies to the host: choices are few and come whole, of logits the rows that are needed."""
        num_logits = 0
        if self._outputs is not None and step.num_rows:
            if self._inputs.resolves_tokens:
                (tokens,) = [part for part in choices.parts if part.name == "tokens"]
                source = self._buffers.choices + tokens.offset
                self._device.copy_within(self._buffers.previous_tokens, source, tokens.num_bytes)
            if choices.num_bytes:
                self._device.copy_out(slot.choices[: choices.num_bytes], self._buffers.choices)
            row_bytes = self._outputs.logits_bytes(1)
            for first, end in row_runs(step.needs_logits != 0):
                to = slot.logits[num_logits * row_bytes :][: (end - first) * row_bytes]
                self._device.copy_out(to, self._buffers.logits + first * row_bytes)
                num_logits += end - first
        return _InFlight(step.id, step.num_rows, num_logits, np.flatnonzero(step.num_candidates > 0), choices, slot)

    def is_done(self, step_id: int) -> bool:
        """Whether `collect` of this step, the oldest in flight, would not wait."""
        return self._device.is_ready(self._oldest(step_id).slot.done)

    def collect(self, step_id: int) -> StepResult:
        """What the oldest step in flight gave. Its arrays stay as they are until the next call.

        Raises:
            DeviceError: the device could not compute it.
            GroupError: another rank did not do its part.
        """
        oldest = self._oldest(step_id)
        self._device.wait(oldest.slot.done)
        if self._group is not None:
            self._group.check()
        self._in_flight.popleft()
        no_rows = np.empty((0, self.max_candidates))
        if self._outputs is None:
            return StepResult(
                np.empty((0, 0), np.float32),
                None,
                no_rows.astype(np.int32),
                no_rows.astype(np.float32),
                np.empty(0, np.float32),
            )

        def choice(name: str, dtype: type[np.generic]) -> NDArray[np.generic]:
            return oldest.choices.view(oldest.slot.choices, name, dtype)

        vocab_size, rows = self._outputs.vocab_size, oldest.candidate_rows
        wanted = len(rows) > 0
        logits = oldest.slot.logits[: self._outputs.logits_bytes(oldest.num_logits)].view(np.float32)
        return StepResult(
            logits=logits.reshape(oldest.num_logits, vocab_size),
            token_ids=self._tokens(choice("tokens", np.int32), oldest) if self._outputs.chooses_tokens else None,
            candidate_ids=(choice("candidate_ids", np.int32)[rows] if wanted else no_rows).astype(np.int32),
            candidate_logits=(choice("candidate_logits", np.float32)[rows] if wanted else no_rows).astype(np.float32),
            log_sums=(choice("log_sums", np.float32)[rows] if wanted else np.empty(0)).astype(np.float32),
        )

    def _tokens(self, tokens: NDArray[np.generic], step: _InFlight) -> NDArray[np.int32]:
        """-1 where the row has no largest logit, which the network says with the size of the vocabulary."""
        assert self._outputs is not None
        found = tokens[: step.num_rows].astype(np.int32)
        return np.where(found < self._outputs.vocab_size, found, np.int32(-1)).astype(np.int32)

    def _oldest(self, step_id: int) -> _InFlight:
        if not self._in_flight or self._in_flight[0].step_id != step_id:
            oldest = self._in_flight[0].step_id if self._in_flight else "none"
            raise ValueError(f"step {step_id} is not the oldest in flight, which is {oldest}")
        return self._in_flight[0]

    def forget(self) -> None:
        """The next step may be any, as when the session was new. Nothing may be in flight.

        Raises:
            ValueError: a step is.
        """
        if self._in_flight:
            raise ValueError(f"step {self._in_flight[0].step_id} is in flight")
        self._last_id = 0

    def close(self) -> None:
        """Waits for what is in flight, and releases the network and the device.

        Where this rank has others, steps that have not ended may wait for ranks that are gone. Nothing is waited for
        then: the end of the process releases what it had.
        """
        if self._group is not None and (self._in_flight or self._is_enqueuing):
            self._group.abort()
            ABANDONED.append(self)
            return
        if self._device.finish():
            self._device.drop_graphs()  # they run what the network has loaded
        self._network.close()
        if self._group is not None:
            self._group.abort()  # others may have ended already: nobody waits for anybody
        self._device.close()
