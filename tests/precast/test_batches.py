"""Many requests at once: in which order they come back, and what becomes of the rest when one fails."""

import functools
import queue
import threading
import time
from collections.abc import Callable, Generator
from typing import Any

import pytest

from precast.batches import run, submit
from precast.generation import GeneratedRequest
from precast.runtime import ErrorCode, FinishReason, NativeError, QueueFullError
from tests.precast.fake_engine import FakeEngine, finished, make

PROMPTS = [[5], [6], [7], [8]]


def running(engine: FakeEngine, requests: list[GeneratedRequest]) -> Generator[GeneratedRequest, None, None]:
    return run(engine, requests)  # type: ignore[arg-type]


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def wait_until(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.001)


def has_asked(engine: FakeEngine, count: int) -> bool:
    return len(engine.asked) == count


def prompts_asked(engine: FakeEngine) -> list[int]:
    return [request.prompt_token_ids[0] for request in engine.asked]


def test_they_come_back_in_the_order_of_their_ends() -> None:
    engine, requests = FakeEngine(), make(PROMPTS)
    ended: queue.SimpleQueue[GeneratedRequest] = queue.SimpleQueue()

    def work() -> None:
        for request in running(engine, requests):
            ended.put(request)

    thread = in_thread(work)
    wait_until(lambda: len(engine.asked) == 4)
    for index in (2, 0, 3, 1):
        engine.end(index)
        assert ended.get(timeout=10) is requests[index]
    thread.join(timeout=10)
    assert prompts_asked(engine) == [5, 6, 7, 8]


def test_the_error_of_a_late_one_comes_at_once_and_cancels_the_others() -> None:
    engine, requests = FakeEngine(), make(PROMPTS)
    raised: list[BaseException] = []

    def work() -> None:
        try:
            for request in running(engine, requests):
                request.result()
        except NativeError as error:
            raised.append(error)

    thread = in_thread(work)
    wait_until(lambda: len(engine.asked) == 4)
    error = NativeError(ErrorCode.INTERNAL, "broken")
    engine.end(3, finished(FinishReason.ERROR, error=error))
    thread.join(timeout=10)
    assert raised == [error]


def test_leaving_early_cancels_what_has_not_ended() -> None:
    engine, requests = FakeEngine(), make(PROMPTS)
    ended = running(engine, requests)

    def end_one() -> None:
        wait_until(lambda: len(engine.asked) == 4)
        engine.end(1)

    thread = in_thread(end_one)
    assert next(ended) is requests[1]
    thread.join()
    ended.close()
    assert [handle.num_cancelled for handle in engine.handles] == [1, 0, 1, 1]


@pytest.mark.parametrize("max_queue_size", [1, 2, 3])
def test_a_queue_that_is_too_small_for_all_is_filled_as_it_empties(max_queue_size: int) -> None:
    engine, requests = FakeEngine(max_queue_size), make(PROMPTS)
    ended: list[GeneratedRequest] = []
    thread = in_thread(lambda: ended.extend(running(engine, requests)))
    for index in range(4):
        num_asked = min(index + max_queue_size, 4)
        wait_until(functools.partial(has_asked, engine, num_asked))
        engine.end(index)
    thread.join(timeout=10)
    assert ended == requests
    assert prompts_asked(engine) == [5, 6, 7, 8]


def test_a_queue_that_others_have_filled_is_waited_for() -> None:
    engine, (other,), requests = FakeEngine(1), make([[9]]), make([[5]])
    submit(engine, [other])  # type: ignore[arg-type]
    thread = in_thread(lambda: list(running(engine, requests)))
    time.sleep(0.05)
    assert prompts_asked(engine) == [9]
    engine.end(0)
    wait_until(lambda: prompts_asked(engine) == [9, 5])
    engine.end(1)
    thread.join(timeout=10)
    assert requests[0].done


def test_leaving_while_the_queue_is_full_cancels_what_was_submitted(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, requests = FakeEngine(2), make(PROMPTS)

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    real_submit = engine.submit

    def fill_and_interrupt(*arguments: Any) -> None:
        if len(engine.asked) == 2:
            interrupted()
        real_submit(*arguments)

    monkeypatch.setattr(engine, "submit", fill_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        next(running(engine, requests))
    assert [handle.num_cancelled for handle in engine.handles] == [1, 1]


def test_submit_says_that_the_queue_is_full() -> None:
    engine, requests = FakeEngine(3), make(PROMPTS)
    with pytest.raises(QueueFullError):
        submit(engine, requests)  # type: ignore[arg-type]
    assert engine.asked == []


def test_no_requests() -> None:
    assert list(running(FakeEngine(), [])) == []
