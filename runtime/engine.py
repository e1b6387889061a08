"""The native engine from Python: submit requests, read their events.

One thread per engine waits inside the library, without the interpreter lock, and hands each event to the
request it belongs to. So any number of Python threads may run requests on one engine.
"""

from __future__ import annotations

import os
import queue
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from precast.runtime.errors import ErrorCode, NativeError, QueueFullError
from precast.runtime.native_engine import NativeEngine
from precast.runtime.requests import EngineOptions, EngineRequest, Event, FinishedEvent, FinishReason


class RequestHandle:
    """A submitted request, and the place where its events arrive. One reader at a time.

    Attributes:
        receive: what is called with each event, in the dispatcher's thread; it must not raise, and what it is slow
            at, every request waits for. Set another one before the request is submitted, and :meth:`get` gives
            nothing.
    """

    def __init__(self, native_engine: NativeEngine, request_id: int) -> None:
        self.id = request_id
        self._native = native_engine
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.receive: Callable[[Event], None] = self._events.put

    def get(self, timeout_s: float | None = None) -> Event:
        """The next event.

        Raises:
            queue.Empty: none came within ``timeout_s``.
        """
        return self._events.get(timeout=timeout_s)

    def events(self) -> Iterator[Event]:
        """All events that are still to come, up to the FinishedEvent."""
        while True:
            event = self.get()
            yield event
            if isinstance(event, FinishedEvent):
                return

    def cancel(self) -> bool:
        """Ends the request early; its FinishedEvent still comes. False: it has already ended, or this is a fork."""
        return self._native.cancel(self.id)

    def check_fork(self) -> None:
        """Raises NativeError in a fork of the process that loaded the engine: no event will ever come there."""
        self._native.check_fork()


class Engine:
    """An engine directory, loaded.

    Args:
        path: the engine directory.
        options: limits and threads.

    Raises:
        EngineLoadError: the directory is missing, damaged, or made for another runtime.
        NativeError: ONNX Runtime's library is missing or refuses the graph, or memory is short.
        FileNotFoundError: precast was installed without its native half.
    """

    def __init__(self, path: str | os.PathLike[str], options: EngineOptions | None = None) -> None:
        self._native = NativeEngine(Path(path), options or EngineOptions())
        self._requests: dict[int, RequestHandle] = {}
        self._lock = threading.Lock()
        self._next_id = 1
        # The thread must not refer to this object, or an engine that was only forgotten would never end.
        self._dispatcher = threading.Thread(
            target=_dispatch_events, args=(self._native, self._requests), name="precast-events", daemon=True
        )
        self._finalizer = weakref.finalize(self, _end_engine, self._native, self._dispatcher)
        self._dispatcher.start()
        self.info: dict[str, Any] = self.read_info()

    def read_info(self) -> dict[str, Any]:
        """What was loaded, as of this moment; see ``precast_engine_info``. ``info`` is that of the start.

        Raises:
            ShutDownError: after :meth:`shutdown`.
        """
        info: dict[str, Any] = self._native.read_json("precast_engine_info")
        return info

    def reserve(self, count: int) -> list[RequestHandle]:
        """Handles for requests that :meth:`submit` is yet to be given, with ids in ascending order."""
        with self._lock:
            first_id = self._next_id
            self._next_id += count
        return [RequestHandle(self._native, first_id + i) for i in range(count)]

    def submit(
        self, requests: Sequence[EngineRequest], handles: Sequence[RequestHandle] | None = None
    ) -> Sequence[RequestHandle]:
        """Queues all requests or, when one is invalid, none.

        Args:
            requests: what to run.
            handles: one each, from :meth:`reserve`; None: new ones. Who has them before the call can cancel the
                requests whenever Ctrl-C comes.

        Raises:
            InvalidRequestError: what is wrong with which request.
            QueueFullError: they would exceed max_queue_size; the handles may be used again.
            ShutDownError: after :meth:`shutdown`.
        """
        if handles is None:
            handles = self.reserve(len(requests))
        self._requests.update((handle.id, handle) for handle in handles)
        try:
            queued = self._native.submit([handle.id for handle in handles], requests)
            if not queued:
                raise QueueFullError(
                    ErrorCode.RESOURCE_EXHAUSTED,
                    f"{len(requests)} more requests would exceed max_queue_size: try again when others have begun",
                )
        except BaseException:  # also Ctrl-C, which may come when the library has already taken them
            for handle in handles:
                self._requests.pop(handle.id, None)
                handle.cancel()
            raise
        return handles

    def stats(self) -> dict[str, Any]:
        """Counters of this moment; see ``precast_engine_stats``.

        Raises:
            ShutDownError: after :meth:`shutdown`.
        """
        counters: dict[str, Any] = self._native.read_json("precast_engine_stats")
        return counters

    def take_iteration_stats(self) -> list[dict[str, Any]]:
        """Statistics of the iterations since the last call, oldest first; see ``precast_engine_iteration_stats``.

        Raises:
            ShutDownError: after :meth:`shutdown`.
        """
        iterations: list[dict[str, Any]] = self._native.read_json("precast_engine_iteration_stats")
        return iterations

    def take_kv_events(self) -> list[dict[str, Any]]:
        """Events about cached KV blocks since the last call, oldest first; see ``precast_engine_kv_events``.

        Raises:
            ShutDownError: after :meth:`shutdown`.
        """
        events: list[dict[str, Any]] = self._native.read_json("precast_engine_kv_events")
        return events

    def reset_prefix_cache(self) -> None:
        """Forgets every cached KV block that no request is using.

        Raises:
            ShutDownError: after :meth:`shutdown`.
        """
        self._native.reset_prefix_cache()

    def shutdown(self) -> None:
        """Cancels what is unfinished and releases everything. Doing it again changes nothing."""
        if self._finalizer.alive:
            _end_engine(self._native, self._dispatcher)
            self._finalizer.detach()  # not before: Ctrl-C may have left it something to do

    @property
    def closed(self) -> bool:
        return not self._finalizer.alive

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.shutdown()


def _dispatch_events(engine: NativeEngine, requests: dict[int, RequestHandle]) -> None:
    """The dispatcher's work: hands out events until the engine is shut down, then releases it."""
    try:
        for request_id, event in engine.wait():
            finished = isinstance(event, FinishedEvent)
            handle = requests.pop(request_id, None) if finished else requests.get(request_id)
            if handle is not None:  # None: nobody reads a request whose submission was interrupted
                handle.receive(event)
    finally:
        engine.release()
        # Only a defect leaves requests here. Their readers must not wait for ever.
        lost = NativeError(ErrorCode.INTERNAL, "the engine ended without finishing this request")
        for handle in list(requests.values()):
            handle.receive(FinishedEvent(FinishReason.ERROR, None, 0, 0, 0, lost))


def _end_engine(engine: NativeEngine, dispatcher: threading.Thread) -> None:
    if engine.forked:  # the engine and its threads live in the parent only
        return
    engine.shut_down()
    # A forgotten engine may be collected in any thread, also in its own dispatcher.
    if dispatcher.is_alive() and dispatcher is not threading.current_thread():
        dispatcher.join()
