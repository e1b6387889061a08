"""A network on a device, whatever runs it, and graphs of its steps."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Protocol

from precast.plugins.device.driver import DeviceError
from precast.runtime.device.device import Device, Graph
from precast.runtime.device.shapes import StepShape

Shapes = Mapping[str, tuple[int, ...]]
Addresses = Mapping[str, int]


class Network(Protocol):
    """A network that is loaded. Its inputs and outputs are device memory of whoever has it."""

    @property
    def inputs(self) -> tuple[str, ...]: ...
    @property
    def outputs(self) -> tuple[str, ...]: ...

    @property
    def grows_when_run(self) -> bool:
        """Whether memory for activations is only known when the largest step has run."""

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Of an input or output; -1 where it is a step's."""

    def prepare(self) -> None:
        """Take what memory is known to be needed, when weights are there.

        Raises:
            DeviceError, NativeError: there is not enough.
        """

    def bind(self, shapes: Shapes, addresses: Addresses) -> None:
        """Say what is the same in all steps from now on: where inputs and outputs lie, and shapes of inputs that the
        network leaves open.

        Raises:
            DeviceError: one is refused.
        """

    def replay(self, shape: StepShape) -> bool:
        """Enqueue a step whose shape is recorded. False: it is not, and nothing happens."""

    def run(self, shape: StepShape, shapes: Shapes, addresses: Addresses) -> None:
        """Enqueue a step, and record its shape where that repeats: its addresses must be the same each time.

        Args:
            shapes: Of the inputs that a step brings.
            addresses: Of these, and of outputs whose place depends on the shape.

        Raises:
            DeviceError: what runs the network, an op or the device refuses it.
        """

    def keep_compiled(self, num_steps: int) -> str:
        """Keep what was compiled on this GPU in the engine. Returns a sentence: what was kept."""

    def close(self) -> None:
        """Release everything, which must go before the device does. Nothing may be running."""


class GraphBook:
    """Graphs of a network's steps, by shape.

    Args:
        device: Where they run.
        num_failures: How many recordings may fail before there are no graphs any more.
    """

    def __init__(self, device: Device, num_failures: int = 1) -> None:
        self._device = device
        self._graphs: dict[StepShape, Graph] = {}
        self._num_failures_left = num_failures

    def replay(self, shape: StepShape) -> bool:
        """Launch the shape's graph. False: there is none, and nothing happens."""
        graph = self._graphs.get(shape)
        if graph is not None:
            self._device.launch(graph)
        return graph is not None

    def record(self, shape: StepShape, enqueue: Callable[[], None]) -> None:
        """Record what has just been run, where the shape repeats: what is done once for a new shape is no part of it.

        Where that has failed too often, one line says so, and steps run without graphs from then on.
        """
        if not shape.repeats or not self._num_failures_left:
            return
        try:
            self._graphs[shape] = self._device.capture(enqueue)
        except DeviceError as error:
            if self._num_failures_left == 1:
                self.give_up(str(error))
            else:
                self._num_failures_left -= 1

    def give_up(self, reason: str) -> None:
        """Record nothing any more, and say so once."""
        if self._num_failures_left:
            say(f"CUDA graphs are off, and decoding is slower: {reason}")
        self._num_failures_left = 0

    def forget(self) -> None:
        """The graphs are of addresses that are no more. Nothing may be running."""
        self.close()
        self._device.drop_graphs()

    def close(self) -> None:
        """Nothing is launched any more. The graphs go with the device, which may have failed."""
        self._graphs.clear()


def say(message: str) -> None:
    """A line for the log of the engine, which reads what this process writes."""
    print(message, file=sys.stderr, flush=True)
