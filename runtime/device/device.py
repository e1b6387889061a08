"""A GPU through the CUDA driver: memory, a stream, events and graphs, all of one process and released together."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precast.plugins.device.driver import DeviceError, call_driver, device_capability
from precast.runtime.errors import ErrorCode, NativeError

_NAME_BYTES = 128


def device_name(driver: Any, device: Any) -> str:
    """As the driver calls it, e.g. "NVIDIA L4"."""
    name: bytes = call_driver(driver, "cuDeviceGetName", _NAME_BYTES, device)
    return name.split(b"\0", 1)[0].decode("utf-8", "replace")  # behind the zero is whatever was in the buffer


@dataclass(frozen=True)
class Event:
    """A place in the stream that can be waited for."""

    handle: Any


@dataclass(frozen=True)
class Graph:
    """What was recorded, ready to be launched again."""

    handle: Any


class Device:
    """One GPU, the primary context of which is current in this thread from now on.

    Work is enqueued on one stream and runs in its order. Whoever uses pinned memory in an asynchronous copy must leave
    it alone until an event behind the copy is ready.

    Args:
        driver: ``cuda.bindings.driver``.
        ordinal: Which of the GPUs that this process sees.

    Raises:
        DeviceError: the driver refused something.
    """

    def __init__(self, driver: Any, ordinal: int) -> None:
        self._driver, self.ordinal = driver, ordinal
        self._device = self._call("cuDeviceGet", ordinal)
        self._context = self._call("cuDevicePrimaryCtxRetain", self._device)
        self._memory: list[Any] = []
        self._pinned: list[int] = []
        self._events: list[Any] = []
        self._graphs: list[Any] = []
        self._stream: Any = None
        try:
            self._call("cuCtxSetCurrent", self._context)
            self._stream = self._call("cuStreamCreate", driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
            self.name = device_name(driver, self._device)
            self.capability = device_capability(driver, self._device)
        except BaseException:
            self.close()
            raise
        self.stream = int(self._stream)
        """The handle of the stream, as TensorRT and plugins take it."""

    def finish(self) -> bool:
        """Waits for what is enqueued, whatever becomes of it. False: the device has failed, and computes no more."""
        status, *_ = self._driver.cuStreamSynchronize(self._stream)
        return int(status) == 0

    def close(self) -> None:
        """Waits for what is enqueued, and releases everything. Doing it again changes nothing."""
        if self._context is None:
            return
        # After an error of the device nothing works any more: the end of the process releases what is left.
        if self._stream is not None and self.finish():
            self.drop_graphs()
            for event in self._events:
                self._call("cuEventDestroy", event)
            for address in self._pinned:
                self._call("cuMemFreeHost", address)
            for memory in self._memory:
                self._call("cuMemFree", memory)
            self._call("cuStreamDestroy", self._stream)
        self._driver.cuDevicePrimaryCtxRelease(self._device)
        self._context = self._stream = None

    # --------------------------------------------------------------------------------------------------------- memory

    def free_bytes(self) -> int:
        """Of memory, at this moment, over all processes."""
        return int(self._call("cuMemGetInfo"))

    def allocate(self, num_bytes: int, what: str) -> int:
        """The address of new memory, a multiple of 256.

        Raises:
            NativeError: there is not enough; the message says for what.
            DeviceError: the driver refused for another reason.
        """
        memory = self._allocate("cuMemAlloc", f"{num_bytes} bytes of its memory", what, num_bytes)
        self._memory.append(memory)
        return int(memory)

    def release(self, address: int) -> None:
        """Give back what :meth:`allocate` gave. Nothing may be using it."""
        memory = next(memory for memory in self._memory if int(memory) == address)
        self._memory.remove(memory)
        self._call("cuMemFree", memory)

    def allocate_pinned(self, num_bytes: int, what: str) -> NDArray[np.uint8]:
        """Host memory that the device copies from and to, as an array that stays valid until :meth:`close`.

        Raises:
            NativeError, DeviceError: as in :meth:`allocate`.
        """
        address = int(self._allocate("cuMemHostAlloc", f"{num_bytes} bytes of host memory", what, num_bytes, 0))
        self._pinned.append(address)
        return np.ctypeslib.as_array((ctypes.c_uint8 * num_bytes).from_address(address))

    def _allocate(self, name: str, amount: str, what: str, *arguments: int) -> Any:
        status, memory = getattr(self._driver, name)(*arguments)
        if int(status) == 0:
            return memory
        if int(status) != int(self._driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY):
            words = self._call("cuGetErrorString", status).decode()
            raise DeviceError(f"{name} of {what}: {words}")
        raise NativeError(
            ErrorCode.RESOURCE_EXHAUSTED,
            f"{self.name}: {amount} for {what} cannot be had: give smaller kv_cache_bytes, max_batch_size or "
            "max_num_tokens, or use a GPU with more memory",
        )

    # ----------------------------------------------------------------------------------------------------------- work

    def fill(self, address: int, num_bytes: int, byte: int = 0) -> None:
        self._call("cuMemsetD8Async", address, byte, num_bytes, self._stream)

    def copy_in(self, to: int, source: NDArray[np.uint8]) -> None:
        """Enqueue the copy of pinned memory to the device."""
        self._call("cuMemcpyHtoDAsync", to, source.ctypes.data, source.nbytes, self._stream)

    def copy_out(self, to: NDArray[np.uint8], source: int) -> None:
        """Enqueue the copy from the device to pinned memory."""
        self._call("cuMemcpyDtoHAsync", to.ctypes.data, source, to.nbytes, self._stream)

    def copy_within(self, to: int, source: int, num_bytes: int) -> None:
        self._call("cuMemcpyDtoDAsync", to, source, num_bytes, self._stream)

    def upload(self, to: int, source: NDArray[np.uint8]) -> None:
        """Copy ordinary host memory to the device. It may be changed then, but see :meth:`finish_copies`."""
        self._call("cuMemcpyHtoD", to, source.ctypes.data, source.nbytes)

    def finish_copies(self) -> None:
        """Wait for uploads: the end of one may be on its way when it returns, and the stream does not wait for it."""
        self._call("cuCtxSynchronize")

    def download(self, source: int, num_bytes: int) -> NDArray[np.uint8]:
        """Wait for everything that is enqueued, and copy device memory to ordinary host memory."""
        self.synchronize()
        data = np.empty(num_bytes, np.uint8)
        self._call("cuMemcpyDtoH", data.ctypes.data, source, num_bytes)
        return data

    def synchronize(self) -> None:
        """Wait for everything that is enqueued."""
        self._call("cuStreamSynchronize", self._stream)

    def new_event(self) -> Event:
        handle = self._call("cuEventCreate", self._driver.CUevent_flags.CU_EVENT_DISABLE_TIMING)
        self._events.append(handle)
        return Event(handle)

    def record(self, event: Event) -> None:
        """From now on the event is the place behind what has been enqueued."""
        self._call("cuEventRecord", event.handle, self._stream)

    def is_ready(self, event: Event) -> bool:
        """Whether the stream has come to the event."""
        status, *_ = self._driver.cuEventQuery(event.handle)
        if int(status) == int(self._driver.CUresult.CUDA_ERROR_NOT_READY):
            return False
        if int(status) != 0:
            self.wait(event)  # which says what is wrong
        return True

    def wait(self, event: Event) -> None:
        self._call("cuEventSynchronize", event.handle)

    # --------------------------------------------------------------------------------------------------------- graphs

    def capture(self, enqueue: Callable[[], None]) -> Graph:
        """Record what `enqueue` enqueues, which is not run.

        Raises:
            DeviceError: something in it cannot be recorded.
        """
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", self._stream, mode)
        try:
            enqueue()
        except BaseException:
            # The stream is of use again. Where the capture was still good, it gives what was recorded until then.
            status, *recorded = self._driver.cuStreamEndCapture(self._stream)
            if int(status) == 0:
                self._call("cuGraphDestroy", recorded[0])
            raise
        recorded = self._call("cuStreamEndCapture", self._stream)
        try:
            handle = self._call("cuGraphInstantiate", recorded, 0)
        finally:
            self._call("cuGraphDestroy", recorded)
        self._graphs.append(handle)
        return Graph(handle)

    def drop_graphs(self) -> None:
        """Destroy all graphs. None may be running."""
        while self._graphs:
            self._call("cuGraphExecDestroy", self._graphs.pop())

    def launch(self, graph: Graph) -> None:
        self._call("cuGraphLaunch", graph.handle, self._stream)

    def _call(self, name: str, *arguments: object, what: str = "") -> Any:
        return call_driver(self._driver, name, *arguments, what=what)
