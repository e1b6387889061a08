"""RequestFuture: waiting for a request, or following it, from threads and event loops, and how it ends early."""

import asyncio
import gc
import itertools
import signal
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest

from precast import RequestFuture, RequestOutput
from precast.runtime import ErrorCode, Event, FinishReason, NativeError
from tests.precast.fake_engine import FakeHandle, attach, finished, make, token

T = TypeVar("T")
DELAY_S = 0.02


class Owner:
    """What a future keeps alive, as an LLM."""


def future_of(*, streaming: bool = False, n: int = 1) -> tuple[RequestFuture, list[FakeHandle]]:
    (request,) = make([5], streaming=streaming, n=n)
    return RequestFuture(request, Owner()), attach(request)


def later(handle: FakeHandle, *events: Event) -> threading.Thread:
    """Gives one after the other in another thread, as the dispatcher would."""

    def work() -> None:
        for event in events:
            time.sleep(DELAY_S)
            handle.receive(event)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def give(handle: FakeHandle, *events: Event) -> None:
    for event in events:
        handle.receive(event)


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    async def limited() -> T:
        return await asyncio.wait_for(coroutine, 10)

    return asyncio.run(limited())


def ids_of(output: RequestOutput) -> list[int]:
    return output.outputs[0].token_ids


# ------------------------------------------------------------------------------------------------------ the result


def test_result_waits_for_the_end() -> None:
    future, (handle,) = future_of()
    thread = later(handle, token(6), finished())
    assert not future.done()
    output = future.result(timeout=10)
    assert (ids_of(output), output.finished, future.done(), future.finished) == ([6], True, True, True)
    assert future.result() is output
    thread.join()


@pytest.mark.parametrize("streaming", [False, True])
def test_a_time_out_leaves_the_request_running(streaming: bool) -> None:
    future, (handle,) = future_of(streaming=streaming)
    handle.receive(token(6))
    for timeout in (0, 0.01):
        with pytest.raises(TimeoutError, match=rf"^request 10 has not ended within {timeout} s$"):
            future.result(timeout)
    assert handle.num_cancelled == 0
    assert future._request._wakers == []  # who has stopped waiting is forgotten
    handle.receive(finished())
    assert ids_of(future.result()) == [6]


def test_tokens_do_not_lengthen_a_time_out() -> None:
    future, (handle,) = future_of(streaming=True)
    stop = threading.Event()

    def feed() -> None:
        while not stop.wait(0.001):
            handle.receive(token(6))

    thread = threading.Thread(target=feed)
    thread.start()
    start_s = time.monotonic()
    with pytest.raises(TimeoutError):
        future.result(0.05)
    assert 0.05 <= time.monotonic() - start_s < 5
    stop.set()
    thread.join()


def test_result_of_a_stream_is_the_whole() -> None:
    future, (handle,) = future_of(streaming=True)
    thread = later(handle, token(6), token(7), finished())
    assert ids_of(future.result(10)) == [6, 7]
    thread.join()


def test_an_error_is_raised_by_whoever_asks() -> None:
    future, (handle,) = future_of(streaming=True)
    handle.receive(finished(FinishReason.ERROR, error=NativeError(ErrorCode.INTERNAL, "broken")))
    uses: list[Callable[[], object]] = [
        future.result,
        lambda: list(future),
        lambda: run(future.aresult()),
        lambda: run(_collect(future)),
    ]
    for use in uses:
        with pytest.raises(NativeError, match="broken"):
            use()


def test_many_threads_may_wait() -> None:
    future, (handle,) = future_of()
    seen: list[RequestOutput] = []
    threads = [threading.Thread(target=lambda: seen.append(future.result())) for _ in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(DELAY_S)
    handle.receive(finished())
    for thread in threads:
        thread.join(timeout=10)
    assert seen == [future.result()] * 8


def test_it_says_what_it_is_about() -> None:
    future, _ = future_of()
    assert (future.request_id, future.prompt) == (10, None)


# ------------------------------------------------------------------------------------------------------- iteration


def test_iteration_gives_what_is_new() -> None:
    future, (handle,) = future_of(streaming=True)
    snapshots = iter(future)
    events: list[Event] = [token(6), token(7), finished()]
    seen = []
    for event in events:
        handle.receive(event)
        output = next(snapshots)
        seen.append((ids_of(output), output.outputs[0].token_ids_diff, output.finished))
    assert seen == [([6], [6], False), ([6, 7], [7], False), ([6, 7], [], True)]
    with pytest.raises(StopIteration):
        next(snapshots)


def test_a_slow_reader_gets_several_tokens_at_once() -> None:
    future, (handle,) = future_of(streaming=True)
    snapshots = iter(future)
    handle.receive(token(6))
    next(snapshots)
    give(handle, token(7), token(8), finished())
    (output,) = snapshots
    assert (output.outputs[0].token_ids_diff, output.finished) == ([7, 8], True)


def test_each_iteration_begins_at_the_beginning() -> None:
    future, (handle,) = future_of(streaming=True)
    first = iter(future)
    handle.receive(token(6))
    next(first)
    handle.receive(token(7))
    late = next(iter(future))
    assert late.outputs[0].token_ids_diff == [6, 7]
    handle.receive(finished())
    assert [ids_of(output) for output in future] == [[6, 7]]
    assert [output.outputs[0].token_ids_diff for output in first] == [[7]]


def test_without_streaming_there_is_one_item() -> None:
    future, (handle,) = future_of()
    thread = later(handle, token(6), finished())
    assert [(ids_of(output), output.finished) for output in future] == [([6], True)]
    thread.join()


def test_the_outputs_of_n_stream_together() -> None:
    future, handles = future_of(streaming=True, n=2)
    snapshots = iter(future)
    handles[1].receive(token(6))
    assert [completion.token_ids for completion in next(snapshots).outputs] == [[], [6]]
    handles[0].receive(token(7))
    assert [completion.token_ids_diff for completion in next(snapshots).outputs] == [[7], []]
    for handle in handles:
        handle.receive(finished())
    (last,) = snapshots
    assert last.finished


def test_nothing_is_lost_between_threads() -> None:
    """Whoever follows sees every token once, however the threads meet."""
    for _ in range(50):
        future, (handle,) = future_of(streaming=True)
        thread = threading.Thread(target=give, args=(handle, *map(token, range(40)), finished()))
        thread.start()
        diffs = [output.outputs[0].token_ids_diff for output in future]
        assert list(itertools.chain(*diffs)) == list(range(40))
        thread.join()


# ----------------------------------------------------------------------------------------------------- event loops


async def _collect(future: RequestFuture) -> list[list[int]]:
    return [output.outputs[0].token_ids_diff async for output in future]


def test_await_gives_the_result() -> None:
    future, (handle,) = future_of()
    thread = later(handle, token(6), finished())

    async def main() -> tuple[RequestOutput, RequestOutput]:
        return await future, await future.aresult()

    first, second = run(main())
    assert first is second is future.result()
    thread.join()


def test_async_iteration_gives_what_is_new() -> None:
    future, (handle,) = future_of(streaming=True)
    thread = later(handle, token(6), token(7), finished())
    assert run(_collect(future)) == [[6], [7], []]
    thread.join()


def test_several_loops_may_follow_one_request() -> None:
    future, (handle,) = future_of(streaming=True)
    seen: list[list[int]] = []
    threads = [
        threading.Thread(target=lambda: seen.append(list(itertools.chain(*asyncio.run(_collect(future))))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for token_id in range(20):
        time.sleep(0.001)
        handle.receive(token(token_id))
    handle.receive(finished())
    for thread in threads:
        thread.join(timeout=10)
    assert seen == [list(range(20))] * 4


def test_a_loop_that_was_closed_stops_nobody() -> None:
    future, (handle,) = future_of(streaming=True)
    loop = asyncio.new_event_loop()
    coroutine = future.aresult()
    task = loop.create_task(coroutine)  # left behind on purpose
    loop.run_until_complete(asyncio.sleep(0.001))
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    handle.receive(token(6))
    handle.receive(finished())
    assert ids_of(future.result(10)) == [6]
    coroutine.close()


def test_a_loop_goes_on_while_it_waits() -> None:
    future, (handle,) = future_of()

    async def main() -> int:
        waiting = asyncio.ensure_future(future.aresult())
        rounds = 0
        while not waiting.done():
            rounds += 1
            if rounds == 10:
                handle.receive(finished())
            await asyncio.sleep(0)
        return rounds

    assert run(main()) >= 10


# ------------------------------------------------------------------------------------------------------ ending early


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


@pytest.mark.parametrize("wait", [RequestFuture.aresult, _collect])
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
