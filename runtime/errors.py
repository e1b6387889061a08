"""What the native library can answer other than a result."""

from __future__ import annotations

import enum


class ErrorCode(enum.IntEnum):
    """``PRECAST_ERROR_*`` of ``precast.h``: a code never changes its meaning."""

    INVALID_ARGUMENT = 1
    NOT_FOUND = 2
    IO = 3
    CORRUPT_ENGINE = 4
    UNSUPPORTED_ENGINE = 5
    ONNXRUNTIME = 6
    RESOURCE_EXHAUSTED = 7
    SHUT_DOWN = 8
    INTERNAL = 9
    FORKED = 10
    RANK_FAILED = 11


class NativeError(RuntimeError):
    """An error of the native library; the message is one sentence that says what to do."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        # A newer library may answer with a code that this binding does not know: it stays a number.
        self.code: int = ErrorCode(code) if code in ErrorCode._value2member_map_ else code

    def __reduce__(self) -> tuple[type[NativeError], tuple[int, str]]:
        return type(self), (int(self.code), str(self))


class InvalidRequestError(NativeError, ValueError):
    """The caller passed something that can never work."""


class EngineLoadError(NativeError):
    """The engine directory is missing, damaged, or made for another runtime."""


class ShutDownError(NativeError):
    """The engine has been shut down."""


class RankFailedError(NativeError):
    """A rank of the engine ended or hangs; the engine is of no use any more, and can be loaded again."""


class QueueFullError(NativeError):
    """As many requests are waiting as ``max_queue_size`` allows: try again later."""


_CLASSES: dict[int, type[NativeError]] = {
    ErrorCode.INVALID_ARGUMENT: InvalidRequestError,
    ErrorCode.NOT_FOUND: EngineLoadError,
    ErrorCode.IO: EngineLoadError,
    ErrorCode.CORRUPT_ENGINE: EngineLoadError,
    ErrorCode.UNSUPPORTED_ENGINE: EngineLoadError,
    ErrorCode.SHUT_DOWN: ShutDownError,
    ErrorCode.RANK_FAILED: RankFailedError,
}


def make_error(code: int, message: str) -> NativeError:
    """The exception for an error of the library."""
    return _CLASSES.get(code, NativeError)(code, message)
