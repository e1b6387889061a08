"""Captures and graphs, as the driver has them."""

# ruff: noqa: N802 - cuda-python's names
import threading

from tests.runtime.tensorrt.fake_cuda.calls import Answer, driver_call
from tests.runtime.tensorrt.fake_cuda.errors import Misuse, StatusError
from tests.runtime.tensorrt.fake_cuda.machine import MACHINE
from tests.runtime.tensorrt.fake_cuda.streams import Capture, Graph, GraphExec
from tests.runtime.tensorrt.fake_cuda.types import (
    CUgraph,
    CUgraphExec,
    CUresult,
    CUstreamCaptureMode,
    CUstreamCaptureStatus,
    StreamLike,
)


@driver_call()
def cuStreamBeginCapture(hStream: StreamLike, mode: CUstreamCaptureMode) -> Answer:
    stream = MACHINE.stream(hStream)
    if stream is MACHINE.current().default_stream:
        raise Misuse("the default stream cannot be captured")
    if stream.capture is not None:
        raise Misuse("the stream captures already")
    stream.capture = Capture(CUstreamCaptureMode(mode))
    return ()


@driver_call(1)
def cuStreamIsCapturing(hStream: StreamLike) -> Answer:
    capture = MACHINE.stream(hStream).capture
    if capture is None:
        return (CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE,)
    if not capture.is_valid:
        return (CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_INVALIDATED,)
    return (CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_ACTIVE,)


@driver_call(1)
def cuStreamEndCapture(hStream: StreamLike) -> Answer:
    stream = MACHINE.stream(hStream)
    capture = stream.capture
    if capture is None:
        raise Misuse("the stream does not capture")
    is_relaxed = capture.mode == CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
    if capture.thread != threading.get_ident() and not is_relaxed:
        raise Misuse("a capture is ended by another thread than began it")
    stream.capture = None
    if not capture.is_valid:
        raise StatusError(CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED)
    return (CUgraph(MACHINE.handles.add(Graph(stream.ordinal, tuple(capture.operations)))),)


@driver_call(1)
def cuGraphInstantiate(hGraph: CUgraph | int, flags: int) -> Answer:
    graph = MACHINE.handles.find(Graph, hGraph)
    return (CUgraphExec(MACHINE.handles.add(GraphExec(graph))),)


@driver_call()
def cuGraphLaunch(hGraphExec: CUgraphExec | int, hStream: StreamLike) -> Answer:
    stream, graph = MACHINE.stream(hStream), MACHINE.handles.find(GraphExec, hGraphExec).graph
    if graph.ordinal != stream.ordinal:
        raise Misuse(f"a graph of device {graph.ordinal} is launched on device {stream.ordinal}")
    for operation in graph.operations:
        for span in operation.spans:
            MACHINE.memory.find(span.address, span.size_bytes)
    for operation in graph.operations:
        MACHINE.enqueue(stream, operation)
    return ()


@driver_call()
def cuGraphDestroy(hGraph: CUgraph | int) -> Answer:
    MACHINE.handles.remove(Graph, hGraph)
    return ()


@driver_call()
def cuGraphExecDestroy(hGraphExec: CUgraphExec | int) -> Answer:
    MACHINE.handles.remove(GraphExec, hGraphExec)
    return ()
