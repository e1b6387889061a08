"""Streams and events, as the driver has them."""

# ruff: noqa: N802 - cuda-python's names
from tests.runtime.tensorrt.fake_cuda.calls import Answer, driver_call
from tests.runtime.tensorrt.fake_cuda.errors import Misuse, StatusError
from tests.runtime.tensorrt.fake_cuda.machine import MACHINE
from tests.runtime.tensorrt.fake_cuda.streams import Event, Record, Stream, Wait
from tests.runtime.tensorrt.fake_cuda.types import CUevent, CUresult, CUstream, CUstream_flags, EventLike, StreamLike


@driver_call(1, breaks_capture=True, is_allowed_when_relaxed=True)
def cuStreamCreate(Flags: int) -> Answer:
    is_blocking = not int(Flags) & CUstream_flags.CU_STREAM_NON_BLOCKING
    return (CUstream(MACHINE.handles.add(Stream(MACHINE.current().ordinal, is_blocking=is_blocking))),)


@driver_call()
def cuStreamDestroy(hStream: StreamLike) -> Answer:
    MACHINE.destroy_stream(hStream)
    return ()


@driver_call(breaks_capture=True)
def cuStreamSynchronize(hStream: StreamLike) -> Answer:
    MACHINE.run(MACHINE.current(), MACHINE.stream(hStream))
    return ()


@driver_call(breaks_capture=True, is_allowed_when_relaxed=True)
def cuStreamQuery(hStream: StreamLike) -> Answer:
    """Never ready while there is work: it waits for nothing, and so nothing runs."""
    if MACHINE.stream(hStream).pending:
        raise StatusError(CUresult.CUDA_ERROR_NOT_READY)
    return ()


@driver_call()
def cuStreamWaitEvent(hStream: StreamLike, hEvent: EventLike, Flags: int) -> Answer:
    stream, event = MACHINE.stream(hStream), MACHINE.event(hEvent)
    if event.is_captured or (stream.capture is not None and event.record is not None):
        raise Misuse("an event crosses the border of a capture")
    if event.record is not None:
        stream.add(Wait(event.record))
    return ()


@driver_call(1)
def cuEventCreate(Flags: int) -> Answer:
    return (CUevent(MACHINE.handles.add(Event(MACHINE.current().ordinal))),)


@driver_call()
def cuEventDestroy(hEvent: EventLike) -> Answer:
    MACHINE.event(hEvent)
    MACHINE.handles.remove(Event, hEvent)
    return ()


@driver_call()
def cuEventRecord(hEvent: EventLike, hStream: StreamLike) -> Answer:
    event, stream = MACHINE.event(hEvent), MACHINE.stream(hStream)
    event.is_captured = stream.capture is not None
    event.record = Record(stream)
    event.queries_left = MACHINE.settings.queries_until_done
    stream.add(event.record)
    return ()


@driver_call(breaks_capture=True, is_allowed_when_relaxed=True)
def cuEventQuery(hEvent: EventLike) -> Answer:
    """Not ready, as often as the settings say; then the work before it is done."""
    event = MACHINE.event(hEvent)
    if event.record is not None and not event.record.is_done:
        if event.queries_left > 0:
            event.queries_left -= 1
            raise StatusError(CUresult.CUDA_ERROR_NOT_READY)
        _finish(event, waits_for_others=False)
    return ()


@driver_call(breaks_capture=True)
def cuEventSynchronize(hEvent: EventLike) -> Answer:
    _finish(MACHINE.event(hEvent))
    return ()


def _finish(event: Event, *, waits_for_others: bool = True) -> None:
    if event.is_captured:
        raise Misuse("an event is waited for that was recorded in a capture")
    if event.record is not None and not event.record.is_done:
        MACHINE.run(MACHINE.current(), event.record.stream, event.record, waits_for_others=waits_for_others)
