"""Engine -> tokens: the native library and its binding."""

from precast.runtime.engine import Engine, RequestHandle
from precast.runtime.errors import EngineLoadError, ErrorCode, InvalidRequestError, NativeError, ShutDownError
from precast.runtime.model import Model
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
    "Model",
    "NativeError",
    "RequestHandle",
    "ShutDownError",
    "TokenEvent",
]
