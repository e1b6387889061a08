"""One request of ``LLM.generate``: its outputs, which events fill in, and whoever waits for them."""

from __future__ import annotations

import contextlib
import functools
import queue
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from precast.completion import Completion
from precast.outputs import RequestOutput
from precast.runtime import EngineRequest, Event, FinishedEvent, RequestHandle

if TYPE_CHECKING:
    import asyncio


class GeneratedRequest:
    """A request and the output that its events fill in. Each of its n outputs is a request of the engine.

    Events come in the thread of the engine's dispatcher; whoever waits may be in any thread and in any event loop.
    The lock is held for moments only, also by a thread that is interrupted by Ctrl-C: nobody waits while holding it.

    Args:
        output: what the caller will see.
        completions: what fills in its outputs.
        streaming: every token is a change that wakes who waits; else only the end is.

    Attributes:
        output: filled in by events until it is done; :meth:`look` copies it before.
        done: whether it has ended, well or with an error.
        version: counts changes, the last of which is the end. Who reads it before ``done`` misses none.
    """

    def __init__(self, output: RequestOutput, completions: Sequence[Completion], *, streaming: bool = False) -> None:
        self.done = False
        self.handles: Sequence[RequestHandle] = ()
        self.completions = completions
        self.output = output
        self._streaming = streaming
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self.version = 0
        self._wakers: list[Callable[[], object]] = []  # of those who wait for the next change

    @property
    def request_id(self) -> int:
        return self.output.request_id

    @property
    def prompt(self) -> str | None:
        return self.output.prompt

    @property
    def native_requests(self) -> list[EngineRequest]:
        return [completion.native_request for completion in self.completions]

    def attach(self, handles: Sequence[RequestHandle]) -> None:
        """Takes the events of ``handles``, one for each of the n outputs, from now on."""
        self.handles = handles
        for completion, handle in zip(self.completions, handles, strict=True):
            handle.receive = functools.partial(self._receive, completion, handle)

    def cancel(self) -> None:
        """Ends what has not ended; takes no lock, so that it may be called wherever garbage is collected."""
        if not self.done:
            for handle in self.handles:
                handle.cancel()

    # ------------------------------------------------------------------------------------------------------ looking

    def result(self) -> RequestOutput:
        """The output, once it is done.

        Raises:
            NativeError: the engine ended one of the outputs with an error.
        """
        if self._error is not None:
            raise self._error
        return self.output

    def look(self, previous: RequestOutput | None) -> tuple[RequestOutput, int]:
        """The output of this moment, and the number of its version. Raises as :meth:`result`."""
        with self._lock:
            if self._error is not None:
                raise self._error
            return self.output.snapshot(previous), self.version

    # ------------------------------------------------------------------------------------------------------ waiting

    def call_when_done(self, callback: Callable[[GeneratedRequest], object]) -> None:
        """Calls back once, in the dispatcher's thread. Only before it is submitted, and when it is not streaming."""
        self._wakers.append(functools.partial(callback, self))

    def wait(self, seen_version: int, timeout_s: float | None = None) -> bool:
        """Returns when the version is another one than ``seen_version``; False: it was not within ``timeout_s``.

        Raises:
            NativeError: this is a fork, where no event will ever come.
        """
        if self.version != seen_version:
            return True
        self._check_fork()
        # The queue's own wait is one uninterrupted call of C: Ctrl-C cannot leave its lock in a strange state.
        mailbox: queue.SimpleQueue[None] = queue.SimpleQueue()
        waker = functools.partial(mailbox.put, None)
        if not self._add_waker(waker, seen_version):
            return True
        try:
            mailbox.get(timeout=timeout_s)
        except queue.Empty:
            return False
        finally:
            self._remove_waker(waker)
        return True

    async def wait_async(self, seen_version: int) -> None:
        """As :meth:`wait`, in whatever event loop is running."""
        import asyncio  # takes longer than what programs without it need all in all

        if self.version != seen_version:
            return
        self._check_fork()
        loop = asyncio.get_running_loop()
        changed = loop.create_future()
        waker = functools.partial(_set_in_loop, loop, changed)
        if not self._add_waker(waker, seen_version):
            return
        try:
            await changed
        finally:
            self._remove_waker(waker)

    def _check_fork(self) -> None:
        for handle in self.handles:
            handle.check_fork()

    def _add_waker(self, waker: Callable[[], object], seen_version: int) -> bool:
        with self._lock:
            if self.version != seen_version:
                return False
            self._wakers.append(waker)
            return True

    def _remove_waker(self, waker: Callable[[], object]) -> None:
        with self._lock, contextlib.suppress(ValueError):  # it may have been woken in the meantime
            self._wakers.remove(waker)

    # ------------------------------------------------------------------------------------------------------- events

    def _receive(self, completion: Completion, handle: RequestHandle, event: Event) -> None:
        """An event of one of the outputs; called by the dispatcher, which no request may stop."""
        with self._lock:
            if self.done:
                return
            try:
                self._apply(completion, handle, event)
            except BaseException as error:  # noqa: BLE001  the error of one request, raised where its result is asked for
                self._fail(error)
            if not (self._streaming or self.done):
                return
            self.version += 1
            wakers, self._wakers = self._wakers, []
        for wake in wakers:
            wake()

    def _apply(self, completion: Completion, handle: RequestHandle, event: Event) -> None:
        if isinstance(event, FinishedEvent):
            completion.finish(event)
            self._note_end(event)
            return
        if completion.has_stopped():  # the engine has not yet heard of it
            return
        completion.accept_token(event)
        if completion.has_stopped():
            handle.cancel()
        metrics = self.output.metrics
        metrics.first_token_ns = min(metrics.first_token_ns or event.time_ns, event.time_ns)
        metrics.last_token_ns = max(metrics.last_token_ns or event.time_ns, event.time_ns)

    def _note_end(self, event: FinishedEvent) -> None:
        output = self.output
        if event.first_scheduled_ns is not None:
            first_ns = output.metrics.first_scheduled_ns or event.first_scheduled_ns
            output.metrics.first_scheduled_ns = min(first_ns, event.first_scheduled_ns)
        known = event.num_cached_tokens if output.num_cached_tokens is None else output.num_cached_tokens
        output.num_cached_tokens = min(known, event.num_cached_tokens)
        if all(each.finish_reason is not None for each in output.outputs):
            output.finished = True
            self._end()

    def _fail(self, error: BaseException) -> None:
        self.cancel()
        self._error = error
        self._end()

    def _end(self) -> None:
        self.done = True
        self.handles = ()  # they refer to this object: a circle would keep both until garbage is collected


def _set_in_loop(loop: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None:
    def set_once() -> None:
        if not future.done():  # it may have been cancelled in the meantime
            future.set_result(None)

    with contextlib.suppress(RuntimeError):  # a loop that was closed has nobody left who waits
        loop.call_soon_threadsafe(set_once)
