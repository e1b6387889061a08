"""What ``LLM.generate_async`` gives at once: the promise of a RequestOutput."""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import AsyncIterator, Generator, Iterator
from typing import Any

from precast.generation import GeneratedRequest
from precast.outputs import RequestOutput


class RequestFuture:
    """A request that runs. Any number of threads, and of tasks in any event loops, may wait for it.

    ``result()``, or ``await``, gives the whole RequestOutput. Iteration, ``for`` or ``async for``, gives snapshots,
    each a RequestOutput of its own: with ``streaming`` one whenever there is something new, which is a token or, for
    a slow reader, several; else only the last one. ``text_diff``, ``token_ids_diff`` and ``logprobs_diff`` of its
    outputs are what is new since the snapshot before. Each iteration begins at the beginning.

    The request is aborted by :meth:`abort`; by an exception that interrupts who waits for it, such as Ctrl-C or the
    cancellation of its asyncio task (``asyncio.shield`` prevents that); and when nobody refers to the future any
    more. A time-out of :meth:`result` does not abort it. The future keeps its LLM alive until it is done.
    """

    def __init__(self, request: GeneratedRequest, owner: object) -> None:
        self._request = request
        self._owner: object = owner
        self._abort_when_forgotten = weakref.finalize(self, request.cancel)
        self._abort_when_forgotten.atexit = False

    @property
    def request_id(self) -> int:
        return self._request.request_id

    @property
    def prompt(self) -> str | None:
        """The text, where the prompt was one."""
        return self._request.prompt

    def done(self) -> bool:
        """Whether the request has ended, well or not."""
        return self._request.done

    @property
    def finished(self) -> bool:
        """As :meth:`done`."""
        return self._request.done

    def abort(self) -> None:
        """Ends the request as soon as possible, with finish_reason "cancelled". Nothing happens once it is done."""
        self._request.cancel()

    def result(self, timeout: float | None = None) -> RequestOutput:
        """Waits for the end.

        Args:
            timeout: seconds to wait at most.

        Raises:
            TimeoutError: it has not ended yet; it goes on.
            NativeError: the engine failed the request.
        """
        deadline_s = None if timeout is None else time.monotonic() + timeout
        with self._aborting():
            while True:
                version = self._request.version
                if self._request.done:
                    break
                left_s = None if deadline_s is None else max(deadline_s - time.monotonic(), 0)
                if not self._request.wait(version, left_s) and left_s == 0:
                    break
        if not self._request.done:
            raise TimeoutError(f"request {self.request_id} has not ended within {timeout} s")
        return self._take_result()

    async def aresult(self) -> RequestOutput:
        """As :meth:`result`, for asyncio: ``asyncio.wait_for`` gives it a time-out, which aborts the request."""
        with self._aborting():
            while True:
                version = self._request.version
                if self._request.done:
                    return self._take_result()
                await self._request.wait_async(version)

    def __await__(self) -> Generator[Any, None, RequestOutput]:
        return self.aresult().__await__()

    def __iter__(self) -> Iterator[RequestOutput]:
        return _Snapshots(self)

    def __aiter__(self) -> AsyncIterator[RequestOutput]:
        return _AsyncSnapshots(self)

    @contextlib.contextmanager
    def _aborting(self) -> Iterator[None]:
        """Whoever waits in here and is interrupted wants no result any more."""
        try:
            yield
        except BaseException:  # KeyboardInterrupt and CancelledError above all
            self._request.cancel()
            raise

    def _take_result(self) -> RequestOutput:
        self._owner = None  # has nothing left to do for this request
        return self._request.result()


class _Cursor:
    """One iteration. It keeps the future, or the request would end with the loop's first round."""

    def __init__(self, future: RequestFuture) -> None:
        self._future = future
        self._version = 0
        self._previous: RequestOutput | None = None
        self._ended = False

    def _advance(self) -> RequestOutput:
        self._ended = True  # also where it raises
        self._previous, self._version = self._future._request.look(self._previous)
        self._ended = self._previous.finished
        if self._ended:
            self._future._owner = None
        return self._previous


class _Snapshots(_Cursor):
    def __iter__(self) -> Iterator[RequestOutput]:
        return self

    def __next__(self) -> RequestOutput:
        if self._ended:
            raise StopIteration
        with self._future._aborting():
            self._future._request.wait(self._version)
            return self._advance()


class _AsyncSnapshots(_Cursor):
    def __aiter__(self) -> AsyncIterator[RequestOutput]:
        return self

    async def __anext__(self) -> RequestOutput:
        if self._ended:
            raise StopAsyncIteration
        with self._future._aborting():
            await self._future._request.wait_async(self._version)
            return self._advance()
