"""Engine -> tokens: the native library and its binding."""

from precast.runtime.engine import Engine, RequestHandle
from precast.runtime.errors import (
    EngineLoadError,
    ErrorCode,
    InvalidRequestError,
    NativeError,
    QueueFullError,
    RankFailedError,
    ShutDownError,
)
from precast.runtime.model import Model
from precast.runtime.requests import (
    CapacityPolicy,
    EngineOptions,
    EngineRequest,
    Event,
    FinishedEvent,
    FinishReason,
    LogLevel,
    Retention,
    TokenEvent,
    TokenLogprob,
)

__all__ = [
    "CapacityPolicy",
    "Engine",
    "EngineLoadError",
    "EngineOptions",
    "EngineRequest",
    "ErrorCode",
    "Event",
    "FinishReason",
    "FinishedEvent",
    "InvalidRequestError",
    "LogLevel",
    "Model",
    "NativeError",
    "QueueFullError",
    "RankFailedError",
    "RequestHandle",
    "Retention",
    "ShutDownError",
    "TokenEvent",
    "TokenLogprob",
]
