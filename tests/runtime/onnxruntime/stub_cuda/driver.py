"""cuda.bindings.driver as far as engines use it, on the stub CUDA: memory is the stub's, kernels are lines in its log.

Copies and sets are done at once. A graph of CUDA is what the log says was captured; launching it computes nothing.
"""

# ruff: noqa: N802 - cuda-python's names

import ctypes
from ctypes import c_size_t, c_uint, c_void_p
from types import SimpleNamespace
from typing import Any

from tests.runtime.onnxruntime.stub_cuda.sessions import StubCuda

MEMORY_BYTES = 80 << 30
Answer = tuple[Any, ...]


class StubDriver:
    """One GPU of compute capability 9.0. `modules` are the codes that were loaded."""

    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=9, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=0
    )
    CUevent_flags = SimpleNamespace(CU_EVENT_DISABLE_TIMING=2)
    CUfunction_attribute = SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8)
    CUresult = SimpleNamespace(CUDA_ERROR_OUT_OF_MEMORY=2, CUDA_ERROR_NOT_READY=600)
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)
    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=1)

    def __init__(self, cuda: StubCuda) -> None:
        self._cuda = cuda
        self.modules: list[bytes] = []
        self.num_allocations = 0
        """Of device memory that has not been given back."""

    def cuDeviceGetCount(self) -> Answer:
        return 0, 1

    def cuDeviceGet(self, ordinal: int) -> Answer:
        return 0, ordinal

    def cuDevicePrimaryCtxRetain(self, device: int) -> Answer:
        return 0, "context"

    def cuDevicePrimaryCtxRelease(self, device: int) -> Answer:
        return (0,)

    def cuCtxSetCurrent(self, context: str) -> Answer:
        return (0,)

    def cuCtxSynchronize(self) -> Answer:
        return (self._cuda.call("cudaDeviceSynchronize"),)

    def cuCtxGetDevice(self) -> Answer:
        return 0, 0

    def cuDeviceGetName(self, size: int, device: int) -> Answer:
        return 0, b"Stub GPU\0"

    def cuDeviceGetAttribute(self, attribute: int, device: int) -> Answer:
        return 0, attribute

    def cuGetErrorString(self, status: int) -> Answer:
        return 0, f"error {status} of the stub CUDA".encode()

    # --------------------------------------------------------------------------------------------------------- memory

    def cuMemGetInfo(self) -> Answer:
        return 0, MEMORY_BYTES, MEMORY_BYTES

    def cuMemAlloc(self, num_bytes: int) -> Answer:
        self.num_allocations += 1
        return 0, self._cuda.allocate(num_bytes)

    def cuMemFree(self, address: int) -> Answer:
        self.num_allocations -= 1
        self._cuda.free(address)
        return (0,)

    def cuMemHostAlloc(self, num_bytes: int, flags: int) -> Answer:
        return 0, self._cuda.make("cudaHostAlloc", c_size_t(num_bytes), c_uint(flags))

    def cuMemFreeHost(self, address: int) -> Answer:
        return (self._cuda.call("cudaFreeHost", c_void_p(address)),)

    def cuMemsetD8Async(self, address: int, byte: int, num_bytes: int, stream: int) -> Answer:
        self._say("cuMemsetD8Async", stream)
        ctypes.memset(address, byte, num_bytes)
        return (0,)

    def cuMemsetD32Async(self, address: int, value: int, count: int, stream: int) -> Answer:
        self._say("cuMemsetD32Async", stream)
        (ctypes.c_uint32 * count).from_address(address)[:] = [value] * count
        return (0,)

    def cuMemcpyHtoD(self, to: int, source: int, num_bytes: int) -> Answer:
        return self._copy("cuMemcpyHtoD", to, source, num_bytes, 0)

    def cuMemcpyHtoDAsync(self, to: int, source: int, num_bytes: int, stream: int) -> Answer:
        return self._copy("cuMemcpyHtoDAsync", to, source, num_bytes, stream)

    def cuMemcpyDtoHAsync(self, to: int, source: int, num_bytes: int, stream: int) -> Answer:
        return self._copy("cuMemcpyDtoHAsync", to, source, num_bytes, stream)

    def cuMemcpyDtoDAsync(self, to: int, source: int, num_bytes: int, stream: int) -> Answer:
        return self._copy("cuMemcpyDtoDAsync", to, source, num_bytes, stream)

    # ---------------------------------------------------------------------------------------------- streams and events

    def cuStreamCreate(self, flags: int) -> Answer:
        return 0, self._cuda.make("cudaStreamCreate")

    def cuStreamDestroy(self, stream: int) -> Answer:
        return (0,)

    def cuStreamSynchronize(self, stream: int) -> Answer:
        return (self._cuda.call("cudaStreamSynchronize", c_void_p(stream)),)

    def cuEventCreate(self, flags: int) -> Answer:
        return 0, self._cuda.make("cudaEventCreate")

    def cuEventDestroy(self, event: int) -> Answer:
        return (0,)

    def cuEventRecord(self, event: int, stream: int) -> Answer:
        return (self._cuda.call("cudaEventRecord", c_void_p(event), c_void_p(stream)),)

    def cuEventSynchronize(self, event: int) -> Answer:
        return (self._cuda.call("cudaEventSynchronize", c_void_p(event)),)

    # --------------------------------------------------------------------------------------------------------- graphs

    def cuStreamBeginCapture(self, stream: int, mode: int) -> Answer:
        return (self._cuda.call("cudaStreamBeginCapture", c_void_p(stream), mode),)

    def cuStreamEndCapture(self, stream: int) -> Answer:
        graph = c_void_p()
        return self._cuda.call("cudaStreamEndCapture", c_void_p(stream), ctypes.byref(graph)), graph.value

    def cuGraphInstantiate(self, graph: int, flags: int) -> Answer:
        return 0, graph

    def cuGraphDestroy(self, graph: int) -> Answer:
        return (0,)

    def cuGraphExecDestroy(self, graph: int) -> Answer:
        return (0,)

    def cuGraphLaunch(self, graph: int, stream: int) -> Answer:
        self._say(f"cuGraphLaunch {graph:#x}", stream)
        return (0,)

    # -------------------------------------------------------------------------------------------------------- kernels

    def cuModuleLoadData(self, code: bytes) -> Answer:
        self.modules.append(code)
        return 0, len(self.modules)

    def cuModuleGetFunction(self, module: int, name: bytes) -> Answer:
        return 0, name.decode("ascii")

    def cuFuncSetAttribute(self, function: str, attribute: int, value: int) -> Answer:
        return (0,)

    def cuLaunchKernel(self, function: str, *rest: int) -> Answer:
        grid, stream = rest[:3], rest[7]
        self._say(f"cuLaunchKernel {function} {'x'.join(map(str, grid))}", stream)
        return (0,)

    def _copy(self, name: str, to: int, source: int, num_bytes: int, stream: int) -> Answer:
        self._say(name, stream)
        ctypes.memmove(to, source, num_bytes)
        return (0,)

    def _say(self, call: str, stream: int) -> None:
        self._cuda.say(f"{call} stream={stream:#x}")
