"""A ``precast_engine_t *`` and the conversion of values to and from the structs of ``precast.h``."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from precast.runtime import library as native
from precast.runtime.errors import ErrorCode, InvalidRequestError, NativeError, ShutDownError
from precast.runtime.requests import (
    EngineOptions,
    EngineRequest,
    Event,
    FinishedEvent,
    FinishReason,
    TokenEvent,
)

_EVENT_CAPACITY = 256
_NO_TIMEOUT = -1
_FINISH_REASONS = {
    1: FinishReason.STOP,
    2: FinishReason.LENGTH,
    3: FinishReason.CANCELLED,
    4: FinishReason.ERROR,
}


class NativeEngine:
    """A ``precast_engine_t *`` that no call can outlive: short calls and the release exclude each other."""

    def __init__(self, path: Path, options: EngineOptions) -> None:
        self._library = native.load_library()
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._pointer: ctypes.c_void_p | None = _new_engine(self._library, path, options)

    def submit(self, ids: Sequence[int], requests: Sequence[EngineRequest]) -> None:
        structs = [_request_struct(request_id, request) for request_id, request in zip(ids, requests, strict=True)]
        pointers = (ctypes.POINTER(native.RequestStruct) * len(structs))(*map(ctypes.pointer, structs))
        self._call("precast_engine_submit", pointers, len(structs))

    def cancel(self, request_id: int) -> bool:
        found = ctypes.c_uint32()
        with contextlib.suppress(ShutDownError):
            self._call("precast_engine_cancel", request_id, ctypes.byref(found))
        return bool(found.value)

    def read_json(self, function: str) -> dict[str, Any]:
        text = ctypes.c_void_p()
        self._call(function, ctypes.byref(text))
        result: dict[str, Any] = json.loads(native.take_string(self._library, text))
        return result

    def shut_down(self) -> None:
        with contextlib.suppress(ShutDownError):
            self._call("precast_engine_shutdown")

    def wait(self) -> Iterator[tuple[int, Event]]:
        """Request ids and their events until the engine is shut down; the thread that waits releases."""
        events = (native.EventStruct * _EVENT_CAPACITY)()
        size = ctypes.sizeof(native.EventStruct)
        count = ctypes.c_size_t()
        while True:
            error = self._library.precast_engine_wait(
                self._pointer, events, size, _EVENT_CAPACITY, _NO_TIMEOUT, ctypes.byref(count)
            )
            try:
                native.check(self._library, error)
            except ShutDownError:
                return
            for struct in events[: count.value]:
                event = _to_event(self._library, struct)
                if event is not None:
                    yield struct.request_id, event

    def release(self) -> None:
        with self._lock:
            pointer, self._pointer = self._pointer, None
        self._library.precast_engine_delete(pointer)

    @property
    def forked(self) -> bool:
        """Whether this is a child of the process that loaded the engine, and can do nothing with it."""
        return os.getpid() != self._pid

    def _call(self, function: str, *arguments: Any) -> None:
        if self.forked:  # the lock may have been held by a thread that the child does not have
            raise NativeError(
                ErrorCode.FORKED,
                f"this engine belongs to process {self._pid}, and this is its fork {os.getpid()}: "
                "load the engine again in this process",
            )
        with self._lock:
            if self._pointer is None:
                raise ShutDownError(ErrorCode.SHUT_DOWN, "the engine has been shut down")
            error = getattr(self._library, function)(self._pointer, *arguments)
        native.check(self._library, error)


def options_struct(library: ctypes.CDLL, options: EngineOptions) -> native.EngineOptionsStruct:
    """``precast_engine_options_t``, with ONNX Runtime's library found where Python has installed it."""
    struct = native.EngineOptionsStruct()
    library.precast_engine_options_init(ctypes.byref(struct), ctypes.sizeof(struct))
    for name in ("num_threads", "max_batch_size", "max_num_tokens", "max_seq_len", "kv_cache_bytes"):
        value = getattr(options, name)
        if value is not None:
            setattr(struct, name, value)
    chosen = options.onnxruntime_path or os.environ.get("PRECAST_ONNXRUNTIME") or native.onnxruntime_path()
    struct.onnxruntime_path = os.fsencode(chosen) if chosen else None
    struct.kernel_level = options.kernel_level.encode() if options.kernel_level else None
    return struct


def _new_engine(library: ctypes.CDLL, path: Path, options: EngineOptions) -> ctypes.c_void_p:
    struct = options_struct(library, options)
    handle = ctypes.c_void_p()
    native.check(library, library.precast_engine_new(os.fsencode(path), ctypes.byref(struct), ctypes.byref(handle)))
    return handle


def _request_struct(request_id: int, request: EngineRequest) -> native.RequestStruct:
    """The struct keeps the arrays that it points to alive."""
    sampling = native.SamplingStruct()
    sampling.struct_size = ctypes.sizeof(sampling)
    sampling.max_tokens = request.max_tokens or 0
    sampling.temperature = request.temperature
    sampling.top_k = request.top_k
    sampling.top_p = request.top_p
    sampling.seed = request.seed & (2**64 - 1)
    sampling.stop_token_ids = int32_array("stop_token_ids", request.stop_token_ids)
    sampling.num_stop_token_ids = len(request.stop_token_ids)
    sampling.ignore_eos = request.ignore_eos
    struct = native.RequestStruct()
    struct.struct_size = ctypes.sizeof(struct)
    struct.id = request_id
    struct.prompt_token_ids = int32_array("prompt_token_ids", request.prompt_token_ids)
    struct.num_prompt_tokens = len(request.prompt_token_ids)
    struct.sampling = ctypes.pointer(sampling)
    return struct


def int32_array(name: str, values: Sequence[int]) -> ctypes.Array[ctypes.c_int32]:
    """The values for C. Raises InvalidRequestError for one that does not fit."""
    for value in values:
        if not -(2**31) <= value < 2**31:  # ctypes would silently keep the lowest 32 bits
            raise InvalidRequestError(ErrorCode.INVALID_ARGUMENT, f"{name} has {value}, which is no 32-bit integer")
    return (ctypes.c_int32 * len(values))(*values)


def _to_event(library: ctypes.CDLL, struct: native.EventStruct) -> Event | None:
    """None for a kind of event that this binding does not know."""
    if struct.kind == native.EVENT_TOKEN:
        return TokenEvent(struct.token_id, struct.time_ns)
    if struct.kind != native.EVENT_FINISHED:
        return None
    error = native.take_error(library, struct.error)
    reason = _FINISH_REASONS.get(struct.finish_reason, FinishReason.ERROR)
    if reason is FinishReason.ERROR and error is None:
        error = NativeError(ErrorCode.INTERNAL, f"the library ended the request with reason {struct.finish_reason}")
    return FinishedEvent(
        reason=reason,
        stop_token_id=struct.stop_token_id if struct.stop_token_id >= 0 else None,
        num_prompt_tokens=struct.num_prompt_tokens,
        num_output_tokens=struct.num_output_tokens,
        time_ns=struct.time_ns,
        error=error,
    )
