"""The machine: its devices, and everything that lives on them. There is one in a process, MACHINE.

Both fakes work on it, the driver and tensorrt_rtx, under whatever name they were imported.
"""

import itertools
import threading
import traceback
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from tests.runtime.tensorrt.fake_cuda.errors import Misuse, StatusError, Unfinished
from tests.runtime.tensorrt.fake_cuda.memory import PINNED, Allocation, Memory, Span
from tests.runtime.tensorrt.fake_cuda.settings import Settings
from tests.runtime.tensorrt.fake_cuda.streams import Event, Graph, GraphExec, Stream, Wait, Work
from tests.runtime.tensorrt.fake_cuda.types import CUresult, Number

T = TypeVar("T")
_KINDS: tuple[type[Any], ...] = (Stream, Event, Graph, GraphExec)


class Device:
    """A device with its primary context, which lives while somebody retains it."""

    def __init__(self, ordinal: int, context: int) -> None:
        self.ordinal, self.context = ordinal, context
        self.retain_count = 0
        self.used_bytes = 0
        self.failure: CUresult | None = None
        self.default_stream = Stream(ordinal, is_blocking=True)


class Handles:
    """Things by their handles, which are never given out twice, whatever they are handles of."""

    def __init__(self) -> None:
        self._numbers = itertools.count(0x1000, 0x10)
        self._things: dict[int, Any] = {}
        self._gone: dict[int, str] = {}

    def add(self, thing: Any) -> int:
        number = next(self._numbers)
        self._things[number] = thing
        return number

    def find(self, kind: type[T], handle: Any) -> T:
        """The thing of this kind. Raises Misuse where the handle is none of its."""
        thing = self._things.get(int(handle))
        if isinstance(thing, kind):
            return thing
        gone = f", it was of a {self._gone[int(handle)]} that is destroyed" if int(handle) in self._gone else ""
        raise Misuse(f"{int(handle):#x} is no handle of a {kind.__name__.lower()}{gone}")

    def remove(self, kind: type[T], handle: Any) -> T:
        thing = self.find(kind, handle)
        del self._things[int(handle)]
        self._gone[int(handle)] = kind.__name__.lower()
        return thing

    def of_kind(self, kind: type[T]) -> Iterator[tuple[int, T]]:
        return ((number, thing) for number, thing in tuple(self._things.items()) if isinstance(thing, kind))


class Machine:
    """What all calls share.

    Attributes:
        misuse: Sentences about defects of the caller. Tests assert that there are none.
        calls: Name and arguments of every call, in order, handles as numbers; those of tensorrt_rtx too where they
            reach the device.
        lock: Held during every call: engines may have threads.
    """

    def __init__(self) -> None:
        self.settings = Settings()
        self.misuse: list[str] = []
        self.calls: list[tuple[Any, ...]] = []
        self.lock = threading.RLock()
        self.reset()

    def reset(self, **settings: Any) -> None:
        """A new machine with these settings. The lists stay the same objects."""
        with self.lock:
            self.settings.reset()
            self.settings.update(settings)
            self.misuse.clear()
            self.calls.clear()
            self.is_initialised = False
            self.memory = Memory()
            self.handles = Handles()
            self.devices = [Device(number, self.handles.add(None)) for number in range(self.settings.num_devices)]
            self._destroyed_streams: list[Stream] = []
            self._dependents: weakref.WeakSet[Any] = weakref.WeakSet()
            self._numbers: Counter[str] = Counter()
            self._current = threading.local()

    # ------------------------------------------------------------------------------------------------------ calls

    def note_misuse(self, text: str) -> None:
        self.misuse.append(text)
        if self.settings.misuse_file:
            with Path(self.settings.misuse_file).open("a", encoding="utf-8") as file:
                file.write(text.replace("\n", " ") + "\n")

    def begin_call(self, name: str, *arguments: Any) -> CUresult:
        """Write a call down. Returns what it is to fail with, or success."""
        self.calls.append((name, *(int(each) if isinstance(each, Number) else each for each in arguments)))
        self._numbers[name] += 1
        for failure in self.settings.fail:
            if failure.device is not None and failure.device != self._current_ordinal():
                continue
            if (failure.call, failure.number) == (name, self._numbers[name]):
                return CUresult(failure.status)
        return CUresult.CUDA_SUCCESS

    def check_capture(self, name: str, *, is_allowed_when_relaxed: bool) -> None:
        """Raises Misuse where a stream captures and this call would break that."""
        for stream in self.streams():
            capture = stream.capture
            if capture is None or not capture.forbids(threading.get_ident()):
                continue
            if is_allowed_when_relaxed and capture.mode.name.endswith("RELAXED"):
                continue
            capture.is_valid = False
            raise Misuse(f"{name} while a stream captures ({capture.mode.name})")

    # --------------------------------------------------------------------------------------------------- contexts

    def device(self, handle: Any) -> Device:
        """Raises StatusError where there is no such device."""
        if not 0 <= int(handle) < len(self.devices):
            raise StatusError(CUresult.CUDA_ERROR_INVALID_DEVICE)
        return self.devices[int(handle)]

    def set_current(self, context: int) -> None:
        """Make a context that of this thread; 0 is none."""
        if context and not any(device.context == context and device.retain_count for device in self.devices):
            raise Misuse(f"{context:#x} is no context that lives")
        self._current.context = context

    def current(self) -> Device:
        """The device of this thread's context. Raises Misuse where there is none."""
        context = self.current_context()
        for device in self.devices:
            if device.context == context and device.retain_count:
                return device
        raise Misuse("this thread has no current context")

    def _current_ordinal(self) -> int | None:
        context = self.current_context()
        return next((device.ordinal for device in self.devices if device.context == context), None)

    def current_context(self) -> int:
        return int(getattr(self._current, "context", 0))

    def add_dependent(self, thing: Any) -> None:
        """Something that must be gone before its context ends; `ordinal` says on which device it is."""
        self._dependents.add(thing)

    def end_context(self, device: Device) -> None:
        """Everything of a context ends with it."""
        for thing in self._dependents:
            if thing.ordinal == device.ordinal and device.failure is None:
                self.note_misuse(f"the context of device {device.ordinal} ends before its {type(thing).__name__}")
        for stream in self._streams_of(device):
            stream.forget()
        for kind in _KINDS:
            for handle, thing in self.handles.of_kind(kind):
                if thing.ordinal == device.ordinal:
                    self.handles.remove(kind, handle)
        for allocation in self.memory.living():
            if allocation.owner == device.ordinal:
                self.release(allocation)

    def leaks(self) -> list[str]:
        """What still lives, in words."""
        found = [str(allocation) for allocation in self.memory.living()]
        for kind in _KINDS:
            found += [f"{kind.__name__.lower()} {handle:#x}" for handle, _ in self.handles.of_kind(kind)]
        return found + [
            f"context of device {device.ordinal}, retained {device.retain_count} times"
            for device in self.devices
            if device.retain_count
        ]

    # ---------------------------------------------------------------------------------------------------- streams

    def streams(self) -> Iterable[Stream]:
        """All of them: those that are destroyed still have work, perhaps."""
        defaults = [device.default_stream for device in self.devices]
        return [*defaults, *(stream for _, stream in self.handles.of_kind(Stream)), *self._destroyed_streams]

    def _streams_of(self, device: Device) -> list[Stream]:
        return [stream for stream in self.streams() if stream.ordinal == device.ordinal]

    def stream(self, handle: Any) -> Stream:
        """The stream of a handle, of the current context; None and 0 are the default stream."""
        device = self.current()
        if handle is None or int(handle) == 0:
            return device.default_stream
        stream = self.handles.find(Stream, handle)
        if stream.ordinal != device.ordinal:
            raise Misuse(f"a stream of device {stream.ordinal} is used in the context of device {device.ordinal}")
        return stream

    def event(self, handle: Any) -> Event:
        event = self.handles.find(Event, handle)
        device = self.current()
        if event.ordinal != device.ordinal:
            raise Misuse(f"an event of device {event.ordinal} is used in the context of device {device.ordinal}")
        return event

    def enqueue(self, stream: Stream, work: Work) -> None:
        """Add work to a stream. Raises Misuse where it races with what another stream is yet to do."""
        if stream.capture is None:
            for other in self.streams():
                if other is not stream:
                    self._check_order(stream, work, other)
        stream.add(work)

    def _check_order(self, stream: Stream, work: Work, other: Stream) -> None:
        pending = other.pending
        waits = [each.record for each in stream.pending if isinstance(each, Wait)]
        # What lies before a record that the stream waits for is done by then.
        num_awaited = max((number for number, each in enumerate(pending) if each in waits), default=0)
        for earlier in pending[num_awaited:]:
            for span in work.spans:
                if any(span.conflicts(touched) for touched in earlier.spans):
                    raise Misuse(f"a {work.name} races with a pending {earlier.name} on another stream")

    def destroy_stream(self, handle: Any) -> None:
        """Its work still gets done on a real device, and here when the whole device is waited for."""
        stream = self.stream(handle)
        if stream is self.current().default_stream:
            raise Misuse("the default stream cannot be destroyed")
        if stream.capture is not None:
            raise Misuse("a stream is destroyed that captures")
        self.handles.remove(Stream, handle)
        stream.is_destroyed = True
        self._destroyed_streams.append(stream)

    def run(self, device: Device, stream: Stream, last: Work | None = None, *, waits_for_others: bool = True) -> None:
        """Run pending work of a stream. What goes wrong in it is the end of the device, as a kernel's fault is.

        Args:
            waits_for_others: False: where work waits for another device, it fails with CUDA_ERROR_NOT_READY.

        Raises:
            StatusError: something went wrong.
        """
        if stream.capture is not None:
            stream.capture.is_valid = False
            raise Misuse("a stream is waited for while it captures")
        try:
            while not _is_run(stream, last):
                if not waits_for_others:
                    raise StatusError(CUresult.CUDA_ERROR_NOT_READY)
        except StatusError:
            raise
        except Exception as error:
            self.note_misuse(f"the device failed: {error}\n{traceback.format_exc()}")
            device.failure = CUresult.CUDA_ERROR_LAUNCH_FAILED
            raise StatusError(device.failure) from error

    def run_all(self, device: Device, *, only_blocking: bool = False) -> None:
        """What a call does that waits for the whole device; or one that waits for streams that are blocking only."""
        for stream in self._streams_of(device):
            if stream.is_blocking or not only_blocking:
                self.run(device, stream)

    # ----------------------------------------------------------------------------------------------------- memory

    def allocate(self, device: Device, size_bytes: int, *, is_pinned: bool) -> Allocation:
        """Raises StatusError where there is no room."""
        if size_bytes <= 0:
            raise StatusError(CUresult.CUDA_ERROR_INVALID_VALUE)
        if is_pinned:
            return self.memory.allocate(size_bytes, PINNED, device.ordinal)
        if size_bytes > self.free_bytes(device):
            raise StatusError(CUresult.CUDA_ERROR_OUT_OF_MEMORY)
        device.used_bytes += size_bytes
        return self.memory.allocate(size_bytes, device.ordinal, device.ordinal)

    def release(self, allocation: Allocation) -> None:
        """Raises Misuse where pending work uses it."""
        for stream in self.streams():
            for work in stream.pending:
                if any(span.overlaps(allocation.span) for span in work.spans):
                    raise Misuse(f"{allocation} is freed while a pending {work.name} uses it")
        if allocation.ordinal != PINNED:
            self.devices[allocation.ordinal].used_bytes -= allocation.size_bytes
        allocation.free()

    def release_at_last(self, allocation: Allocation) -> None:
        """What a destructor does, which cannot fail."""
        with self.lock:
            try:
                if self.memory.holds(allocation):  # not if the machine is another one since
                    self.release(allocation)
            except Misuse as error:
                self.note_misuse(str(error))

    def free_bytes(self, device: Device) -> int:
        before = self.settings.free_bytes
        return (self.settings.total_bytes if before is None else before) - device.used_bytes

    def check_no_race(self, span: Span) -> None:
        """For a call that does not wait for all streams. Raises Misuse where pending work touches the same bytes."""
        for stream in self.streams():
            for work in stream.pending:
                if any(span.conflicts(touched) for touched in work.spans):
                    raise Misuse(f"it races with a pending {work.name} on a stream that it does not wait for")


def _is_run(stream: Stream, last: Work | None) -> bool:
    """Run it; False where it waits for another device."""
    try:
        stream.run_until(last)
    except Unfinished:
        return False
    return True


MACHINE = Machine()
