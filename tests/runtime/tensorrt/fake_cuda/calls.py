"""How every function of the driver answers: it checks what all of them check, writes the call down, and never raises
what the real one would return.
"""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec

from tests.runtime.tensorrt.fake_cuda.errors import Misuse, StatusError
from tests.runtime.tensorrt.fake_cuda.machine import MACHINE
from tests.runtime.tensorrt.fake_cuda.types import STICKY, CUresult

P = ParamSpec("P")
Answer = tuple[Any, ...]


def driver_call(
    num_results: int = 0,
    *,
    needs_context: bool = True,
    breaks_capture: bool = False,
    is_allowed_when_relaxed: bool = False,
) -> Callable[[Callable[P, Answer]], Callable[P, Answer]]:
    """Makes a function of the driver of one that returns results only, and raises Misuse or StatusError.

    Args:
        num_results: How many there are behind the status; they are None where it failed.
        needs_context: The thread must have one, and it fails if the device has failed before.
        breaks_capture: It waits or allocates.
        is_allowed_when_relaxed: But not if the capture is relaxed.
    """
    failed = (None,) * num_results

    def decorate(function: Callable[P, Answer]) -> Callable[P, Answer]:
        name = function.__name__

        def check(status: CUresult) -> CUresult:
            """What the call ends with before it does anything."""
            if not MACHINE.is_initialised and name not in ("cuInit", "cuDriverGetVersion"):
                MACHINE.note_misuse(f"{name}: before cuInit")
                return CUresult.CUDA_ERROR_NOT_INITIALIZED
            if needs_context:
                device = MACHINE.current()
                if device.failure is None and status in STICKY:
                    device.failure = status
                status = device.failure or status
            if breaks_capture and status == CUresult.CUDA_SUCCESS:
                MACHINE.check_capture(name, is_allowed_when_relaxed=is_allowed_when_relaxed)
            return status

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> Answer:
            with MACHINE.lock:
                try:
                    status = check(MACHINE.begin_call(name, *args, *kwargs.values()))
                    if status != CUresult.CUDA_SUCCESS:
                        return (status, *failed)
                    return (status, *function(*args, **kwargs))
                except Misuse as error:
                    MACHINE.note_misuse(f"{name}: {error}")
                    return (CUresult.CUDA_ERROR_INVALID_VALUE, *failed)
                except StatusError as error:
                    return (error.status, *failed)

        return call

    return decorate
