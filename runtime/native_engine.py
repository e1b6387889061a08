"""A ``precast_engine_t *``, with the calls that it takes."""

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
from precast.runtime.conversion import options_struct, request_struct, take_event
from precast.runtime.errors import ErrorCode, NativeError, ShutDownError
from precast.runtime.requests import EngineOptions, EngineRequest, Event
from precast.runtime.structs import EventStruct, RequestStruct

_EVENT_CAPACITY = 256
_NO_TIMEOUT = -1


class NativeEngine:
    """A ``precast_engine_t *`` that no call can outlive: short calls and the release exclude each other."""

    def __init__(self, path: Path, options: EngineOptions) -> None:
        self._library = native.load_library()
        # Garbage is collected wherever Python allocates, also in a thread that is in a call here; a request that is
        # forgotten with it is cancelled from there.
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._options = options_struct(self._library, options)  # holds the callback that the engine calls
        self._pointer: ctypes.c_void_p | None = ctypes.c_void_p()
        try:
            error = self._library.precast_engine_new(
                os.fsencode(path), ctypes.byref(self._options), ctypes.byref(self._pointer)
            )
            native.check(self._library, error)
        except BaseException:  # also Ctrl-C, which is raised when the library has loaded the engine
            self._delete()
            raise

    def __del__(self) -> None:
        self._delete()  # only where Ctrl-C came before there was a thread that waits and releases

    def submit(self, ids: Sequence[int], requests: Sequence[EngineRequest]) -> bool:
        """False: they would exceed max_queue_size, and none of them was taken."""
        structs = [request_struct(request_id, request) for request_id, request in zip(ids, requests, strict=True)]
        pointers = (ctypes.POINTER(RequestStruct) * len(structs))(*map(ctypes.pointer, structs))
        queued = ctypes.c_uint32()
        self._call("precast_engine_submit", pointers, len(structs), ctypes.byref(queued))
        return bool(queued.value)

    def cancel(self, request_id: int) -> bool:
        """Also after the end of the engine, and in a fork, where there is nothing left to cancel."""
        if self.forked:
            return False
        found = ctypes.c_uint32()
        with contextlib.suppress(ShutDownError):
            self._call("precast_engine_cancel", request_id, ctypes.byref(found))
        return bool(found.value)

    def read_json(self, function: str) -> Any:
        text = ctypes.c_void_p()
        self._call(function, ctypes.byref(text))
        return json.loads(native.take_string(self._library, text))

    def reset_prefix_cache(self) -> None:
        self._call("precast_engine_reset_prefix_cache")

    def shut_down(self) -> None:
        with contextlib.suppress(ShutDownError):
            self._call("precast_engine_shutdown")

    def wait(self) -> Iterator[tuple[int, Event]]:
        """Request ids and their events until the engine is shut down; the thread that waits releases."""
        events = (EventStruct * _EVENT_CAPACITY)()
        size = ctypes.sizeof(EventStruct)
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
                event = take_event(self._library, struct)
                if event is not None:
                    yield struct.request_id, event

    def release(self) -> None:
        with self._lock:
            pointer, self._pointer = self._pointer, None
        self._library.precast_engine_delete(pointer)

    def _delete(self) -> None:
        if getattr(self, "_pointer", None) and not self.forked:
            self.release()

    @property
    def forked(self) -> bool:
        """Whether this is a child of the process that loaded the engine, and can do nothing with it."""
        return os.getpid() != self._pid

    def check_fork(self) -> None:
        """Raises NativeError in a fork, where whatever the engine's threads hold or promise is lost."""
        if self.forked:
            raise NativeError(
                ErrorCode.FORKED,
                f"this engine belongs to process {self._pid}, and this is its fork {os.getpid()}: "
                "load the engine again in this process",
            )

    def _call(self, function: str, *arguments: Any) -> None:
        self.check_fork()  # first: the lock may have been held by a thread that the child does not have
        with self._lock:
            if self._pointer is None:
                raise ShutDownError(ErrorCode.SHUT_DOWN, "the engine has been shut down")
            error = getattr(self._library, function)(self._pointer, *arguments)
        native.check(self._library, error)
