"""Futures of requests that a test answers, and what waits for them."""

import asyncio
import threading
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from precast import RequestFuture, RequestOutput
from precast.runtime import Event
from tests.precast.fake_engine import FakeHandle, attach, make

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


async def collect(future: RequestFuture) -> list[list[int]]:
    return [output.outputs[0].token_ids_diff async for output in future]
