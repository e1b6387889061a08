"""What requests share is computed once, counted on a real engine. Exact blocks: tests/native/test_scheduler_reuse."""

from collections.abc import Callable
from pathlib import Path

import pytest

from precast.runtime import Engine, EngineOptions, EngineRequest, FinishedEvent

PREFIX = [(5 * i) % 300 for i in range(192)]
REQUESTS = [
    EngineRequest([*PREFIX, *((7 * i + 13 * j) % 300 for j in range(32))], max_tokens=2, temperature=0, ignore_eos=True)
    for i in range(16)
]


def cached_tokens(engine: Engine, requests: list[EngineRequest]) -> list[int]:
    """Submits all of them at once; how many prompt tokens each found."""
    found = []
    for handle in engine.submit(requests):
        last = list(handle.events())[-1]
        assert isinstance(last, FinishedEvent)
        assert last.error is None
        found.append(last.num_cached_tokens)
    return found


@pytest.mark.parametrize("max_num_tokens", [2048, 500, 128, 40])
def test_a_prefix_of_requests_that_arrive_together_is_computed_once(
    tiny_engine: Callable[..., Path], max_num_tokens: int
) -> None:
    options = EngineOptions(max_batch_size=16, max_num_tokens=max_num_tokens)
    with Engine(tiny_engine("gqa"), options) as engine:
        found = cached_tokens(engine, REQUESTS)
        stats = engine.stats()
    assert found == [0] + [192] * 15
    assert stats["prompt_tokens_computed"] == 192 + 16 * 32  # of 16 * 224 = 3584
    assert stats["prompt_tokens_reused"] == 15 * 192


def test_a_prefix_outlives_its_request_and_a_reset_ends_it(tiny_engine: Callable[..., Path]) -> None:
    with Engine(tiny_engine("gqa")) as engine:
        assert cached_tokens(engine, REQUESTS[:1]) == [0]
        assert cached_tokens(engine, REQUESTS[1:2]) == [192]
        assert cached_tokens(engine, REQUESTS[:1]) == [208]  # 224, without the block of the last token
        engine.reset_prefix_cache()
        assert cached_tokens(engine, REQUESTS[:1]) == [0]


def test_salts_and_options_keep_requests_apart(tiny_engine: Callable[..., Path]) -> None:
    def request(salt: bytes, *, skip: bool = False) -> EngineRequest:
        return EngineRequest(PREFIX, max_tokens=1, temperature=0, cache_salt=salt, skip_block_reuse=skip)

    with Engine(tiny_engine("gqa")) as engine:
        assert cached_tokens(engine, [request(b""), request(b"a"), request(b"b"), request(b"a")]) == [0, 0, 0, 176]
        assert cached_tokens(engine, [request(b"a", skip=True)]) == [0]
    with Engine(tiny_engine("gqa"), EngineOptions(enable_block_reuse=False)) as engine:
        assert cached_tokens(engine, [request(b""), request(b"")]) == [0, 0]
        assert engine.stats()["num_cached_blocks"] == 0
