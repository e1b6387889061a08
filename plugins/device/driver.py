"""Calls of the CUDA driver as cuda-python binds it (cuda.bindings.driver), with errors as exceptions.

The driver is an argument everywhere, so that order and arguments of its calls are tested without a GPU.
"""

from typing import Any


class DeviceError(RuntimeError):
    """The CUDA driver refused a call; the message has the call and the driver's own words."""


def call_driver(driver: Any, name: str, *arguments: object, what: str = "") -> Any:
    """Call a function of the driver.

    Args:
        what: What it is called for, for the message.

    Returns:
        Its result behind the status, or None where it has none.

    Raises:
        DeviceError: the driver refused.
    """
    status, *results = getattr(driver, name)(*arguments)
    if int(status) != 0:
        _, text = driver.cuGetErrorString(status)
        words = text.decode() if isinstance(text, bytes) else f"error {int(status)}"
        raise DeviceError(f"{name}{f' of {what}' if what else ''}: {words}")
    return results[0] if results else None


def device_capability(driver: Any, device: Any) -> int:
    """Compute capability: 89 is 8.9."""
    attribute = driver.CUdevice_attribute
    major, minor = (
        int(call_driver(driver, "cuDeviceGetAttribute", which, device))
        for which in (
            attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        )
    )
    return 10 * major + minor
