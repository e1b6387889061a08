"""Runs launches on a GPU, on NumPy arrays that are copied there and back; the counterpart of device_interpreter.py."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precast.plugins.device.compile_triton import compile_kernels
from precast.plugins.device.driver import call_driver, device_capability
from precast.plugins.device.kernel_spec import KernelSpec
from precast.plugins.device.launch import Launch
from precast.plugins.device.launcher import Launcher


class Memory:
    """Nobody watches what kernels access here."""

    def add(self, name: str, array: NDArray[Any], readable: Any = False, writable: Any = False) -> None:
        pass


@functools.cache
def open_gpu() -> tuple[Any, str]:
    """The driver, with the context of GPU 0 current, and the target that kernels are compiled for."""
    from cuda.bindings import driver

    call_driver(driver, "cuInit", 0)
    device = call_driver(driver, "cuDeviceGet", 0)
    call_driver(driver, "cuCtxSetCurrent", call_driver(driver, "cuDevicePrimaryCtxRetain", device))
    return driver, f"sm_{device_capability(driver, device)}"


@functools.cache
def _launcher(specs: tuple[KernelSpec, ...]) -> Launcher:
    driver, target = open_gpu()
    return Launcher(driver, compile_kernels(specs, [target], ptx=False))


def run(
    launches: tuple[Launch, ...], specs: tuple[KernelSpec, ...], arrays: Mapping[str, NDArray[Any]], memory: Memory
) -> None:
    """Executes the launches in order; all arrays are changed in place."""
    del memory
    driver, _ = open_gpu()
    launcher = _launcher(specs)
    allocated = {name: call_driver(driver, "cuMemAlloc", max(array.nbytes, 1)) for name, array in arrays.items()}
    addresses = {name: int(memory) for name, memory in allocated.items()}
    try:
        for name, array in arrays.items():
            contiguous = np.ascontiguousarray(array)
            call_driver(driver, "cuMemcpyHtoD", addresses[name], contiguous.ctypes.data, contiguous.nbytes)
        for launch in launches:
            launcher.launch(launch, addresses, stream=0)
        call_driver(driver, "cuCtxSynchronize")
        for name, array in arrays.items():
            back = np.empty(array.shape, array.dtype)
            call_driver(driver, "cuMemcpyDtoH", back.ctypes.data, addresses[name], back.nbytes)
            array[...] = back
    finally:
        for address in allocated.values():
            call_driver(driver, "cuMemFree", address)
