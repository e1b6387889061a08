"""RequestFuture: waiting for a request, or following it, from threads."""

import itertools
import threading
import time
from collections.abc import Callable

import pytest

from precast import RequestOutput
from precast.runtime import ErrorCode, Event, FinishReason, NativeError
from tests.precast.fake_engine import finished, token
from tests.precast.fake_futures import DELAY_S, collect, future_of, give, ids_of, later, run

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
        lambda: run(collect(future)),
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
