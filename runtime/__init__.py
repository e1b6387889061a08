"""Engine -> tokens: the native library and its binding."""

from precast.runtime.engine import Engine, RequestHandle
from precast.runtime.errors import EngineLoadError, ErrorCode, InvalidRequestError, NativeError, ShutDownError
from precast.runtime.requests import (
    EngineOptions,
    EngineRequest,
    Event,
    FinishedEvent,
    FinishReason,
    TokenEvent,
)

__all__ = [
    "Engine",
    "EngineLoadError",
    "EngineOptions",
    "EngineRequest",
    "ErrorCode",
    "Event",
    "FinishReason",
    "FinishedEvent",
    "InvalidRequestError",
    "NativeError",
    "RequestHandle",
    "ShutDownError",
    "TokenEvent",
]
