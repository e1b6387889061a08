"""Devices and their contexts, as the driver has them; and its errors in words."""

# ruff: noqa: N802 - cuda-python's names
from tests.runtime.tensorrt.fake_cuda.calls import Answer, driver_call
from tests.runtime.tensorrt.fake_cuda.errors import Misuse, StatusError
from tests.runtime.tensorrt.fake_cuda.machine import MACHINE
from tests.runtime.tensorrt.fake_cuda.types import (
    ContextLike,
    CUcontext,
    CUdevice,
    CUdevice_attribute,
    CUresult,
    DeviceLike,
)


@driver_call(needs_context=False)
def cuInit(Flags: int) -> Answer:
    if Flags:
        raise StatusError(CUresult.CUDA_ERROR_INVALID_VALUE)
    if not MACHINE.devices:
        raise StatusError(CUresult.CUDA_ERROR_NO_DEVICE)
    MACHINE.is_initialised = True
    return ()


@driver_call(1, needs_context=False)
def cuDriverGetVersion() -> Answer:
    return (MACHINE.settings.driver_version,)


@driver_call(1, needs_context=False)
def cuDeviceGetCount() -> Answer:
    return (len(MACHINE.devices),)


@driver_call(1, needs_context=False)
def cuDeviceGet(ordinal: int) -> Answer:
    return (CUdevice(MACHINE.device(ordinal).ordinal),)


@driver_call(1, needs_context=False)
def cuDeviceGetName(length: int, dev: DeviceLike) -> Answer:
    """As many bytes as asked for: the name, a zero, and spaces behind it."""
    MACHINE.device(dev)
    name = MACHINE.settings.name.encode("ascii")[: length - 1] + b"\0"
    return (name.ljust(length),)


@driver_call(1, needs_context=False)
def cuDeviceGetPCIBusId(length: int, dev: DeviceLike) -> Answer:
    return (f"0000:{MACHINE.device(dev).ordinal:02x}:00.0".encode("ascii")[: length - 1].ljust(length, b"\0"),)


@driver_call(1, needs_context=False)
def cuDeviceTotalMem(dev: DeviceLike) -> Answer:
    MACHINE.device(dev)
    return (MACHINE.settings.total_bytes,)


@driver_call(1, needs_context=False)
def cuDeviceGetAttribute(attrib: CUdevice_attribute, dev: DeviceLike) -> Answer:
    MACHINE.device(dev)
    major, minor = MACHINE.settings.capability
    values = {
        CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: 8,
        CUdevice_attribute.CU_DEVICE_ATTRIBUTE_INTEGRATED: 0,
        CUdevice_attribute.CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING: 1,
        CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: major,
        CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: minor,
    }
    if attrib not in values:
        raise Misuse(f"the fake device knows no attribute {attrib!r}")
    return (values[attrib],)


@driver_call(1, needs_context=False)
def cuDevicePrimaryCtxRetain(dev: DeviceLike) -> Answer:
    device = MACHINE.device(dev)
    device.retain_count += 1
    return (CUcontext(device.context),)


@driver_call(needs_context=False)
def cuDevicePrimaryCtxRelease(dev: DeviceLike) -> Answer:
    device = MACHINE.device(dev)
    if not device.retain_count:
        raise Misuse(f"the context of device {device.ordinal} is released more often than retained")
    device.retain_count -= 1
    if not device.retain_count:
        MACHINE.end_context(device)
    return ()


@driver_call(needs_context=False)
def cuCtxSetCurrent(ctx: ContextLike) -> Answer:
    MACHINE.set_current(int(ctx or 0))
    return ()


@driver_call(1, needs_context=False)
def cuCtxGetCurrent() -> Answer:
    return (CUcontext(MACHINE.current_context()),)


@driver_call(1)
def cuCtxGetDevice() -> Answer:
    return (CUdevice(MACHINE.current().ordinal),)


@driver_call(breaks_capture=True)
def cuCtxSynchronize() -> Answer:
    MACHINE.run_all(MACHINE.current())
    return ()


def cuGetErrorName(error: CUresult | int) -> Answer:
    try:
        return (CUresult.CUDA_SUCCESS, CUresult(error).name.encode("ascii"))
    except ValueError:
        return (CUresult.CUDA_ERROR_INVALID_VALUE, None)


def cuGetErrorString(error: CUresult | int) -> Answer:
    """The name in words; the real driver has others."""
    status, name = cuGetErrorName(error)
    if name is None:
        return (status, None)
    return (status, name.decode("ascii").removeprefix("CUDA_ERROR_").lower().replace("_", " ").encode("ascii"))
