"""How a RequestFuture ends its request early: on demand, by what interrupts who waits, and when it is forgotten."""

import asyncio
import gc
import signal
import threading
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from precast import RequestFuture, RequestOutput
from precast.runtime import ErrorCode, FinishReason, NativeError
from tests.precast.fake_engine import finished, token
from tests.precast.fake_futures import DELAY_S, collect, future_of, give, ids_of, run


def test_abort() -> None:
    future, (handle,) = future_of()
    future.abort()
    assert handle.num_cancelled == 1
    handle.receive(token(6))
    handle.receive(finished(FinishReason.CANCELLED))
    output = future.result()
    assert (ids_of(output), output.outputs[0].finish_reason) == ([6], "cancelled")
    future.abort()
    assert handle.num_cancelled == 1


@pytest.mark.parametrize("use", [lambda future: future.result(), list], ids=["result", "for"])
def test_ctrl_c_aborts(use: Callable[[RequestFuture], object], monkeypatch: pytest.MonkeyPatch) -> None:
    future, (handle,) = future_of()

    def interrupted(*arguments: Any) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(future._request, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        use(future)
    assert handle.num_cancelled == 1


@pytest.mark.parametrize("wait", [RequestFuture.aresult, collect])
def test_cancelling_the_task_that_waits_aborts(wait: Callable[[RequestFuture], Coroutine[Any, Any, Any]]) -> None:
    future, (handle,) = future_of()

    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(wait(future), DELAY_S)

    run(main())
    assert handle.num_cancelled == 1
    assert future._request._wakers == []


def test_a_shield_prevents_that() -> None:
    future, (handle,) = future_of()

    async def main() -> RequestOutput:
        waiting = asyncio.ensure_future(future.aresult())
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(waiting), DELAY_S)
        assert handle.num_cancelled == 0
        handle.receive(finished())
        return await waiting

    assert run(main()).finished


def test_a_forgotten_future_aborts() -> None:
    future, (handle,) = future_of()
    del future
    gc.collect()
    assert handle.num_cancelled == 1


def test_a_loop_that_is_left_forgets_its_future() -> None:
    future, (handle,) = future_of(streaming=True)
    handle.receive(token(6))
    snapshots = iter(future)
    del future
    assert ids_of(next(snapshots)) == [6]
    assert handle.num_cancelled == 0  # the iteration keeps it
    del snapshots
    gc.collect()
    assert handle.num_cancelled == 1


def test_a_future_that_is_done_aborts_nothing() -> None:
    future, (handle,) = future_of()
    handle.receive(finished())
    del future
    gc.collect()
    assert handle.num_cancelled == 0


@pytest.mark.parametrize("use", [lambda future: future.result(), list, lambda future: run(future.aresult())])
def test_its_llm_lives_until_it_is_done(use: Callable[[RequestFuture], object]) -> None:
    future, (handle,) = future_of()
    owner = weakref.ref(future._owner)
    gc.collect()
    assert owner() is not None
    handle.receive(finished())
    use(future)
    gc.collect()
    assert owner() is None


def test_in_a_fork_it_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    future, (handle,) = future_of()

    def check() -> None:
        raise NativeError(ErrorCode.FORKED, "this is its fork")

    monkeypatch.setattr(handle, "check_fork", check)
    uses: list[Callable[[], object]] = [future.result, lambda: list(future), lambda: run(future.aresult())]
    for use in uses:
        with pytest.raises(NativeError, match="this is its fork"):
            use()


class Interruption(BaseException):
    """What a signal handler raises, as Python's own does with KeyboardInterrupt."""


def test_a_reader_that_was_interrupted_leaves_nothing_locked() -> None:
    """As Ctrl-C between any two steps of the waiting thread."""

    def interrupt(*_: object) -> None:
        raise Interruption

    def follow(future: RequestFuture, interrupted_after_s: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, interrupted_after_s)
        for _ in future:
            pass

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        for i in range(200):
            future, (handle,) = future_of(streaming=True)
            feeder = threading.Thread(target=give, args=(handle, *map(token, range(300))))
            feeder.start()
            with pytest.raises(Interruption):
                follow(future, 0.0002 + i * 0.00001)
            feeder.join(timeout=10)
            assert not feeder.is_alive()
            handle.receive(finished())
            assert future.result(10).finished
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
