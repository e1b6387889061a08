"""The GPUs of this machine, for tests that need some."""

import functools


@functools.cache
def num_gpus() -> int:
    """How many CUDA can use; 0 without cuda-python or a driver."""
    try:
        from cuda.bindings import driver
    except ImportError:
        return 0
    try:
        (status,) = driver.cuInit(0)
    except RuntimeError:  # there is no driver to open
        return 0
    if int(status):
        return 0
    status, count = driver.cuDeviceGetCount()
    return 0 if int(status) else int(count)
