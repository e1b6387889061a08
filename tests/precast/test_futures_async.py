"""RequestFuture in event loops, of which several may wait for one request."""

import asyncio
import itertools
import threading
import time

from precast import RequestOutput
from tests.precast.fake_engine import finished, token
from tests.precast.fake_futures import collect, future_of, ids_of, later, run


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
    assert run(collect(future)) == [[6], [7], []]
    thread.join()


def test_several_loops_may_follow_one_request() -> None:
    future, (handle,) = future_of(streaming=True)
    seen: list[list[int]] = []
    threads = [
        threading.Thread(target=lambda: seen.append(list(itertools.chain(*asyncio.run(collect(future))))))
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
