"""Runs compiled kernels on the current device, through the CUDA driver, which is an argument (driver.py)."""

import ctypes
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

from precast.plugins.device.compiled_kernel import CompiledKernel
from precast.plugins.device.driver import DeviceError as DeviceError
from precast.plugins.device.driver import call_driver, device_capability
from precast.plugins.device.launch import Launch
from precast.plugins.device.select_kernels import select_kernels
from precast.plugins.device.serialize import from_bytes, to_bytes

DEFAULT_SHARED_BYTES = 48 << 10
"""Dynamic shared memory that a block may have without being asked for (CUDA C++ Programming Guide)."""
_THREADS_PER_WARP = 32
_C_TYPES = {"pointer": ctypes.c_uint64, "int32": ctypes.c_int32, "int64": ctypes.c_int64, "float": ctypes.c_float}
_TRITON_PARAMETERS = ("global_scratch", "profile_scratch")
"""What Triton adds to every kernel: null, as compile_triton.py has checked."""


class Launcher:
    """Kernels loaded into the current context. It must be made and used while that context is current, by one thread.

    Modules stay loaded until the context ends: graphs that were captured refer to them.
    """

    def __init__(self, driver: Any, kernels: Iterable[CompiledKernel]) -> None:
        """Load, of each kernel, the code that suits the current device.

        Raises:
            DeviceError: there is no current context, or the driver cannot load the code.
            ValueError: a kernel was not compiled for the device.
        """
        self._driver = driver
        device = call_driver(driver, "cuCtxGetDevice")
        self._kernels = select_kernels(kernels, *divmod(device_capability(driver, device), 10))
        self._functions = {name: self._load(kernel) for name, kernel in self._kernels.items()}
        self._arguments: dict[tuple[str, tuple[str, ...]], _Arguments] = {}

    def launch(self, launch: Launch, addresses: Mapping[str, int], stream: int) -> None:
        """Enqueue one launch.

        Args:
            launch: What to run.
            addresses: Of every buffer that it names, on the device.
            stream: The handle of a CUDA stream.

        Raises:
            DeviceError: the driver refused it.
            ValueError: the kernel takes other arguments, or an address is missing or not a multiple of 16.
        """
        key = launch.kernel, launch.buffers
        arguments = self._arguments.get(key)
        if arguments is None:
            arguments = self._arguments[key] = _Arguments(self._kernels[launch.kernel], launch)
        arguments.fill(launch, addresses)
        call_driver(
            self._driver,
            "cuLaunchKernel",
            self._functions[launch.kernel],
            *launch.grid,
            arguments.num_threads,
            1,
            1,
            arguments.shared_bytes,
            stream,
            arguments.address,
            0,
        )

    def _load(self, kernel: CompiledKernel) -> Any:
        code = kernel.code + b"\0" if kernel.kind == "ptx" else kernel.code  # the driver reads PTX as a C string
        module = call_driver(
            self._driver, "cuModuleLoadData", code, what=f"{kernel.name} for {kernel.target} ({kernel.kind})"
        )
        function = call_driver(
            self._driver, "cuModuleGetFunction", module, kernel.name.encode("ascii"), what=kernel.name
        )
        if kernel.shared_bytes > DEFAULT_SHARED_BYTES:
            attribute = self._driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            call_driver(self._driver, "cuFuncSetAttribute", function, attribute, kernel.shared_bytes, what=kernel.name)
        return function


def open_launcher(data: bytes) -> Launcher:
    """The kernels that the compressed bytes of `compress_kernels` hold, loaded into the current context.

    Raises:
        DeviceError, ValueError: as Launcher.
        ModuleNotFoundError: cuda-python is not installed.
    """
    from cuda.bindings import driver

    return Launcher(driver, from_bytes(zlib.decompress(data)))


def compress_kernels(kernels: Iterable[CompiledKernel]) -> bytes:
    """Kernels as they lie in a plan: a quarter of their size."""
    return zlib.compress(to_bytes(kernels), level=9)


class _Arguments:
    """The C values of a kernel's arguments, which the driver copies at each launch: made once, filled in each time.

    That is most of what a launch costs the host.

    Attributes:
        address: Of an array of pointers to them.
    """

    def __init__(self, kernel: CompiledKernel, launch: Launch) -> None:
        """Raises ValueError where the kernel takes other arguments than launches like this one give."""
        self._name, self._buffers = kernel.name, launch.buffers
        self._scalars = tuple(name for name, _ in launch.scalars)
        given = (*launch.buffers, *self._scalars, *_TRITON_PARAMETERS)
        taken = tuple(parameter.name for parameter in kernel.parameters)
        if given != taken:
            raise ValueError(f"kernel {kernel.name} takes {', '.join(taken)}, the launch gives {', '.join(given)}")
        self._cells: list[Any] = [_C_TYPES[parameter.c_type](0) for parameter in kernel.parameters]
        self._pointers = (ctypes.c_void_p * len(self._cells))(*map(ctypes.addressof, self._cells))
        self.address = ctypes.addressof(self._pointers)
        self.num_threads, self.shared_bytes = _THREADS_PER_WARP * kernel.num_warps, kernel.shared_bytes

    def fill(self, launch: Launch, addresses: Mapping[str, int]) -> None:
        """Raises ValueError where an address is missing or crooked, or scalars are others than the first launch's."""
        cells, bits = iter(self._cells), 0
        for name in self._buffers:
            address = addresses.get(name)
            if address is None:
                raise ValueError(f"kernel {self._name} needs the address of {self._missing(addresses)}")
            bits |= address
            next(cells).value = address
        if bits & 15:
            crooked = ", ".join(name for name in self._buffers if addresses[name] & 15)
            raise ValueError(f"kernel {self._name}: the address of {crooked} must be a multiple of 16")
        for expected, (name, value) in zip(self._scalars, launch.scalars, strict=True):
            if name != expected:
                raise ValueError(f"kernel {self._name} takes {expected}, the launch gives {name}")
            next(cells).value = value

    def _missing(self, addresses: Mapping[str, int]) -> str:
        return ", ".join(name for name in self._buffers if name not in addresses)
