"""Memory and copies, as the driver has them."""

# ruff: noqa: N802 - cuda-python's names
import ctypes
import functools
from typing import Any

import numpy as np

from tests.runtime.tensorrt.fake_cuda.calls import Answer, driver_call
from tests.runtime.tensorrt.fake_cuda.errors import Misuse, StatusError
from tests.runtime.tensorrt.fake_cuda.machine import MACHINE
from tests.runtime.tensorrt.fake_cuda.memory import Span, host_address
from tests.runtime.tensorrt.fake_cuda.streams import Operation, Stream
from tests.runtime.tensorrt.fake_cuda.types import CUdeviceptr, CUresult, PointerLike, StreamLike


@driver_call(2)
def cuMemGetInfo() -> Answer:
    return (MACHINE.free_bytes(MACHINE.current()), MACHINE.settings.total_bytes)


@driver_call(1, breaks_capture=True)
def cuMemAlloc(bytesize: int) -> Answer:
    return (CUdeviceptr(MACHINE.allocate(MACHINE.current(), bytesize, is_pinned=False).address),)


@driver_call(breaks_capture=True)
def cuMemFree(dptr: PointerLike) -> Answer:
    """Waits for the device; but nothing promises that, and so memory that pending work uses must not be freed."""
    device = MACHINE.current()
    allocation = MACHINE.memory.starting_at(int(dptr))
    if allocation.ordinal != device.ordinal:
        raise Misuse(f"{allocation} is freed as memory of device {device.ordinal}")
    MACHINE.release(allocation)
    MACHINE.run_all(device)
    return ()


@driver_call(1, breaks_capture=True)
def cuMemHostAlloc(bytesize: int, Flags: int) -> Answer:
    return (MACHINE.allocate(MACHINE.current(), bytesize, is_pinned=True).address,)


@driver_call(breaks_capture=True)
def cuMemFreeHost(p: int) -> Answer:
    allocation = MACHINE.memory.starting_at(host_address(p))
    if allocation.kind != "pinned":
        raise Misuse(f"{allocation} is freed as memory of the host")
    MACHINE.release(allocation)
    return ()


@driver_call()
def cuMemsetD8Async(dstDevice: PointerLike, uc: int, N: int, hStream: StreamLike) -> Answer:
    if not 0 <= uc < 256:
        raise OverflowError(f"{uc} is no unsigned char")  # as cuda-python does
    stream, address = MACHINE.stream(hStream), int(dstDevice)
    target = MACHINE.memory.on_device(address, N, stream.ordinal)
    spans = (Span(address, N, is_written=True),)
    MACHINE.enqueue(stream, Operation("memset", spans, functools.partial(target.fill, uc)))
    return ()


@driver_call()
def cuMemsetD32Async(dstDevice: PointerLike, ui: int, N: int, hStream: StreamLike) -> Answer:
    """Plugins call it, which run when the step does: to write what is the step's own."""
    del hStream
    np.ctypeslib.as_array((ctypes.c_uint32 * N).from_address(int(dstDevice)))[:] = ui
    return ()


@driver_call()
def cuMemsetD8(dstDevice: PointerLike, uc: int, N: int) -> Answer:
    """Waits for streams that are blocking."""
    device = MACHINE.current()
    target = MACHINE.memory.on_device(int(dstDevice), N, device.ordinal)
    MACHINE.run_all(device, only_blocking=True)
    MACHINE.check_no_race(Span(int(dstDevice), N, is_written=True))
    target.fill(uc)
    return ()


@driver_call(1)
def cuIpcGetMemHandle(dptr: PointerLike) -> Answer:
    """No process sees another's memory here."""
    MACHINE.memory.starting_at(int(dptr))
    raise StatusError(CUresult.CUDA_ERROR_NOT_SUPPORTED)


@driver_call()
def cuMemcpyHtoDAsync(dstDevice: PointerLike, srcHost: Any, ByteCount: int, hStream: StreamLike) -> Answer:
    stream, source = MACHINE.stream(hStream), host_address(srcHost)
    to = MACHINE.memory.on_device(int(dstDevice), ByteCount, stream.ordinal)
    return _enqueue_copy("copy to the device", stream, to, MACHINE.memory.pinned(source, ByteCount))


@driver_call()
def cuMemcpyDtoHAsync(dstHost: Any, srcDevice: PointerLike, ByteCount: int, hStream: StreamLike) -> Answer:
    stream, target = MACHINE.stream(hStream), host_address(dstHost)
    source = MACHINE.memory.on_device(int(srcDevice), ByteCount, stream.ordinal)
    return _enqueue_copy("copy to the host", stream, MACHINE.memory.pinned(target, ByteCount), source)


@driver_call()
def cuMemcpyDtoDAsync(dstDevice: PointerLike, srcDevice: PointerLike, ByteCount: int, hStream: StreamLike) -> Answer:
    stream = MACHINE.stream(hStream)
    to = MACHINE.memory.on_device(int(dstDevice), ByteCount, stream.ordinal)
    source = MACHINE.memory.on_device(int(srcDevice), ByteCount, stream.ordinal)
    return _enqueue_copy("copy on the device", stream, to, source)


def _enqueue_copy(name: str, stream: Stream, to: Any, source: Any) -> Answer:
    spans = (Span(to.ctypes.data, to.nbytes, is_written=True), Span(source.ctypes.data, source.nbytes))
    if spans[0].overlaps(spans[1]):
        raise Misuse("a copy overlaps itself")

    def run() -> None:
        to[:] = source

    MACHINE.enqueue(stream, Operation(name, spans, run))
    return ()


@driver_call(breaks_capture=True)
def cuMemcpyHtoD(dstDevice: PointerLike, srcHost: Any, ByteCount: int) -> Answer:
    """Waits for streams that are blocking; the host's memory is any."""
    device = MACHINE.current()
    to = MACHINE.memory.on_device(int(dstDevice), ByteCount, device.ordinal)
    MACHINE.run_all(device, only_blocking=True)
    MACHINE.check_no_race(Span(int(dstDevice), ByteCount, is_written=True))
    ctypes.memmove(to.ctypes.data, host_address(srcHost), ByteCount)
    return ()


@driver_call(breaks_capture=True)
def cuMemcpyDtoH(dstHost: Any, srcDevice: PointerLike, ByteCount: int) -> Answer:
    """Waits for streams that are blocking; the host's memory is any."""
    device = MACHINE.current()
    source = MACHINE.memory.on_device(int(srcDevice), ByteCount, device.ordinal)
    MACHINE.run_all(device, only_blocking=True)
    MACHINE.check_no_race(Span(int(srcDevice), ByteCount))
    ctypes.memmove(host_address(dstHost), source.ctypes.data, ByteCount)
    return ()
