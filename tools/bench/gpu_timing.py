"""Kernels of ours on GPU 0: compiled for it, and timed by events on a stream."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from precast.plugins.device.compile_triton import compile_kernels
from precast.plugins.device.driver import call_driver, device_capability
from precast.plugins.device.kernel_spec import KernelSpec
from precast.plugins.device.launcher import Launcher

RUNS = 30
WARM_UP = 3


class Gpu:
    """GPU 0, whose primary context is current from now on."""

    def __init__(self) -> None:
        from cuda.bindings import driver

        self._driver: Any = driver
        self.call("cuInit", 0)
        self._device = self.call("cuDeviceGet", 0)
        self.call("cuCtxSetCurrent", self.call("cuDevicePrimaryCtxRetain", self._device))
        self._events = [self.call("cuEventCreate", driver.CUevent_flags.CU_EVENT_DEFAULT) for _ in range(2)]
        self.stream = int(self.call("cuStreamCreate", driver.CUstream_flags.CU_STREAM_NON_BLOCKING))

    def launcher(self, specs: Sequence[KernelSpec]) -> Launcher:
        """These kernels, compiled here for this GPU."""
        target = f"sm_{device_capability(self._driver, self._device)}"
        return Launcher(self._driver, compile_kernels(specs, [target], ptx=False))

    @contextmanager
    def memory(self, sizes_bytes: Mapping[str, int]) -> Iterator[dict[str, int]]:
        """Addresses of new memory, of zeros, by name."""
        memory = {name: self.call("cuMemAlloc", max(1, size)) for name, size in sizes_bytes.items()}
        try:
            for name, size in sizes_bytes.items():
                self.call("cuMemsetD8", memory[name], 0, max(1, size))
            yield {name: int(address) for name, address in memory.items()}
        finally:
            for address in memory.values():
                self.call("cuMemFree", address)

    def seconds(self, run: Callable[[], None], repeats: int = 1) -> float:
        """Median time of what `run` enqueues on the stream, `repeats` times over, recorded as a graph: so that short
        kernels are not timed with the host's pauses between them.
        """
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        run()  # what is done once for a kernel is no part of the graph
        self.call("cuStreamBeginCapture", self.stream, mode)
        for _ in range(repeats):
            run()
        recorded = self.call("cuStreamEndCapture", self.stream)
        graph = self.call("cuGraphInstantiate", recorded, 0)
        start, end = self._events
        times = []
        for _ in range(RUNS + WARM_UP):
            self.call("cuEventRecord", start, self.stream)
            self.call("cuGraphLaunch", graph, self.stream)
            self.call("cuEventRecord", end, self.stream)
            self.call("cuEventSynchronize", end)
            times.append(float(self.call("cuEventElapsedTime", start, end)) / 1e3 / repeats)
        self.call("cuGraphExecDestroy", graph)
        self.call("cuGraphDestroy", recorded)
        return statistics.median(times[WARM_UP:])

    def call(self, name: str, *arguments: object) -> Any:
        return call_driver(self._driver, name, *arguments)
