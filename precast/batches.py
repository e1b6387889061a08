"""Many requests at once: submitted, and given back as they end."""

from __future__ import annotations

import contextlib
import queue
from collections import deque
from collections.abc import Generator, Sequence

from precast.generation import GeneratedRequest
from precast.llm_base import saying_so_after_shutdown
from precast.runtime import Engine, QueueFullError

_RETRY_S = 0.01


def submit(engine: Engine, requests: Sequence[GeneratedRequest]) -> None:
    """Queues all requests, or none.

    Raises:
        ValueError: one of them cannot work.
        QueueFullError: they would exceed max_queue_size.
        RuntimeError: the engine has been shut down in the meantime.
    """
    for request in requests:  # before they run, so that they can be cancelled whenever Ctrl-C comes
        request.attach(engine.reserve(len(request.native_requests)))
    natives = [native for request in requests for native in request.native_requests]
    with saying_so_after_shutdown():
        engine.submit(natives, [handle for request in requests for handle in request.handles])


def run(engine: Engine, requests: Sequence[GeneratedRequest]) -> Generator[GeneratedRequest, None, None]:
    """Submits requests, waiting for room in the queue, and gives each when it has ended, the first one first.

    Whoever leaves before the end, or is interrupted, cancels what has not ended.

    Raises:
        ValueError: one of them cannot work; nothing has run where the queue has room for all.
        RuntimeError: the engine has been shut down before all were submitted.
    """
    ended: queue.SimpleQueue[GeneratedRequest] = queue.SimpleQueue()
    for request in requests:
        request.call_when_done(ended.put)
    try:
        waiting = deque(_submit_if_all_fit(engine, requests))
        for _ in requests:
            yield _next_ended(engine, waiting, ended)
    except BaseException:  # KeyboardInterrupt and GeneratorExit above all
        for request in requests:
            request.cancel()
        raise


def _submit_if_all_fit(engine: Engine, requests: Sequence[GeneratedRequest]) -> Sequence[GeneratedRequest]:
    """Those that are still to be submitted: none, or all."""
    try:
        submit(engine, requests)
    except QueueFullError:
        return requests
    return ()


def _next_ended(
    engine: Engine, waiting: deque[GeneratedRequest], ended: queue.SimpleQueue[GeneratedRequest]
) -> GeneratedRequest:
    while waiting:
        if not _submit_if_all_fit(engine, [waiting[0]]):
            waiting.popleft()
            continue
        with contextlib.suppress(queue.Empty):  # the library tells nobody that its queue has room again
            return ended.get(timeout=_RETRY_S)
    return ended.get()
