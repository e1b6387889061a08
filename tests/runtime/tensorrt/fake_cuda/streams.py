"""Streams, events and graphs. Nothing that is enqueued runs before somebody waits for it.

So whoever changes a buffer too early, or reads a result too soon, gets wrong bytes, every time.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.runtime.tensorrt.fake_cuda.errors import Unfinished
from tests.runtime.tensorrt.fake_cuda.memory import Span
from tests.runtime.tensorrt.fake_cuda.types import CUstreamCaptureMode


@dataclass(frozen=True)
class Operation:
    """Something that a stream does: what it touches, and how it is done. It may run many times, from a graph."""

    name: str
    spans: Sequence[Span]
    run: Callable[[], None]


@dataclass(eq=False)
class Record:
    """One recording of an event. It is done when the stream has come to it."""

    stream: "Stream"
    is_done: bool = False
    name: str = "event record"
    spans: Sequence[Span] = ()

    def run(self) -> None:
        self.is_done = True


@dataclass(frozen=True, eq=False)
class Wait:
    """A stream does not go on before the record is done, which may be on another stream."""

    record: Record
    name: str = "wait for an event"
    spans: Sequence[Span] = ()

    def run(self) -> None:
        if not self.record.is_done:
            self.record.stream.run_until(self.record)


Work = Operation | Record | Wait


@dataclass
class Capture:
    """What a stream was asked to do since its capture began."""

    mode: CUstreamCaptureMode
    thread: int = field(default_factory=threading.get_ident)
    operations: list[Operation] = field(default_factory=list)
    is_valid: bool = True

    def forbids(self, thread: int) -> bool:
        """Whether calls of this thread that wait or allocate would break the capture."""
        return self.mode == CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL or thread == self.thread


class Stream:
    """Work in its order.

    Attributes:
        is_blocking: Whether calls that are synchronous wait for it: not with CU_STREAM_NON_BLOCKING.
    """

    def __init__(self, ordinal: int, *, is_blocking: bool) -> None:
        self.ordinal, self.is_blocking = ordinal, is_blocking
        self.is_destroyed = False
        self.capture: Capture | None = None
        self._pending: deque[Work] = deque()

    @property
    def pending(self) -> Sequence[Work]:
        return tuple(self._pending)

    def add(self, work: Work) -> None:
        """Enqueue, or record where the stream captures."""
        if self.capture is None:
            self._pending.append(work)
        elif isinstance(work, Operation):
            self.capture.operations.append(work)

    def run_until(self, last: Work | None = None) -> None:
        """Run what is pending, in order, up to `last` and with it; without it, everything."""
        while self._pending:
            work = self._pending.popleft()
            try:
                work.run()
            except Unfinished:
                self._pending.appendleft(work)
                raise
            if work is last:
                return

    def forget(self) -> None:
        self._pending.clear()


class Event:
    """Its latest recording counts.

    Attributes:
        queries_left: How many times a query still says that it is not done.
    """

    def __init__(self, ordinal: int) -> None:
        self.ordinal = ordinal
        self.record: Record | None = None
        self.queries_left = 0
        self.is_captured = False


@dataclass(frozen=True)
class Graph:
    """Captured operations, with the addresses that they were captured with."""

    ordinal: int
    operations: Sequence[Operation]


@dataclass(frozen=True)
class GraphExec:
    """A graph that can be launched."""

    graph: Graph

    @property
    def ordinal(self) -> int:
        return self.graph.ordinal
