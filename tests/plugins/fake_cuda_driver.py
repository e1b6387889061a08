"""A CUDA driver that only writes down what it was asked, in place of cuda.bindings.driver."""

import ctypes
from dataclasses import dataclass, field
from typing import Any


class CUdevice_attribute:  # noqa: N801 - cuda-python's name
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = "major"
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = "minor"


class CUfunction_attribute:  # noqa: N801
    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = "shared"


@dataclass
class FakeDriver:
    """Of a device with this compute capability. `refuse` names a call that fails."""

    major: int = 8
    minor: int = 9
    refuse: str = ""
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    CUdevice_attribute = CUdevice_attribute
    CUfunction_attribute = CUfunction_attribute

    def _answer(self, *call: Any, result: Any = None) -> tuple[Any, ...]:
        self.calls.append(call)
        status = 209 if call[0] == self.refuse else 0
        return (status,) if result is None else (status, result)

    def cuCtxGetDevice(self) -> tuple[Any, ...]:  # noqa: N802
        return self._answer("cuCtxGetDevice", result="device 0")

    def cuDeviceGetAttribute(self, attribute: str, device: str) -> tuple[Any, ...]:  # noqa: N802
        assert device == "device 0"
        return 0, getattr(self, attribute)

    def cuModuleLoadData(self, image: bytes) -> tuple[Any, ...]:  # noqa: N802
        return self._answer("cuModuleLoadData", image, result=f"module of {image!r}")

    def cuModuleGetFunction(self, module: str, name: bytes) -> tuple[Any, ...]:  # noqa: N802
        return self._answer("cuModuleGetFunction", module, name, result=f"function {name.decode()}")

    def cuFuncSetAttribute(self, function: str, attribute: str, value: int) -> tuple[Any, ...]:  # noqa: N802
        return self._answer("cuFuncSetAttribute", function, attribute, value)

    def cuLaunchKernel(self, function: str, *rest: int) -> tuple[Any, ...]:  # noqa: N802
        """`kernelParams` is read as the driver would: an array of addresses of 64-bit or 32-bit values."""
        *shape, shared_bytes, stream, params, extra = rest
        assert extra == 0
        self.params = params
        return self._answer("cuLaunchKernel", function, tuple(shape), shared_bytes, stream, self._read(params))

    parameter_sizes: tuple[int, ...] = ()

    def _read(self, params: int) -> tuple[int, ...]:
        addresses = (ctypes.c_void_p * len(self.parameter_sizes)).from_address(params)
        kinds = {8: ctypes.c_uint64, 4: ctypes.c_int32}
        pairs = zip(addresses, self.parameter_sizes, strict=True)
        return tuple(kinds[size].from_address(address or 0).value for address, size in pairs)

    def cuGetErrorString(self, status: int) -> tuple[int, bytes]:  # noqa: N802
        return 0, b"no kernel image is available for execution on the device"
