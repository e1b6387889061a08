"""What the engine reports, with TensorRT-LLM's keys, and waiting for it."""

import asyncio
import time
from datetime import datetime, timedelta

import pytest

from precast.stats import poll, poll_async, to_iteration_stats, to_kv_event

INFO = {"max_batch_size": 64, "max_num_tokens": 2048}
ITERATION = {
    "iter": 7,
    "timestamp_ns": 0,
    "latency_ns": 2_500_000,
    "num_new_active_requests": 1,
    "new_active_requests_queue_latency_ns": 1_250_000,
    "num_active_requests": 2,
    "num_queued_requests": 3,
    "num_completed_requests": 4,
    "num_paused_requests": 5,
    "num_scheduled_requests": 6,
    "num_context_requests": 1,
    "num_generation_requests": 5,
    "num_context_tokens": 11,
    "used_blocks": 10,
    "free_blocks": 90,
    "max_blocks": 100,
    "tokens_per_block": 16,
    "allocated_blocks": 30,
    "reused_blocks": 9,
    "missed_blocks": 27,
}


def test_an_iteration() -> None:
    stats = to_iteration_stats({**ITERATION, "timestamp_ns": time.monotonic_ns() - 10**9}, INFO)
    then = datetime.strptime(stats.pop("timestamp"), "%m-%d-%Y %H:%M:%S.%f")
    assert abs(datetime.now() - timedelta(seconds=1) - then) < timedelta(seconds=5)
    assert stats.pop("cpuMemUsage") > 10 << 20
    assert stats == {
        "iter": 7,
        "iterLatencyMS": 2.5,
        "newActiveRequestsQueueLatencyMS": 1.25,
        "numNewActiveRequests": 1,
        "numActiveRequests": 2,
        "numQueuedRequests": 3,
        "numCompletedRequests": 4,
        "maxNumActiveRequests": 64,
        "maxBatchSizeStatic": 64,
        "maxNumTokensStatic": 2048,
        "gpuMemUsage": 0,
        "pinnedMemUsage": 0,
        "kvCacheStats": {
            "maxNumBlocks": 100,
            "freeNumBlocks": 90,
            "usedNumBlocks": 10,
            "tokensPerBlock": 16,
            "allocTotalBlocks": 39,
            "allocNewBlocks": 30,
            "reusedBlocks": 9,
            "missedBlocks": 27,
            "cacheHitRate": 0.25,
        },
        "inflightBatchingStats": {
            "numScheduledRequests": 6,
            "numContextRequests": 1,
            "numGenRequests": 5,
            "numPausedRequests": 5,
            "numCtxTokens": 11,
            "microBatchId": 0,
            "avgNumDecodedTokensPerIter": 1.0,
        },
    }


def test_nothing_looked_for_is_no_hit() -> None:
    nothing = {**ITERATION, "reused_blocks": 0, "missed_blocks": 0, "num_generation_requests": 0}
    stats = to_iteration_stats(nothing, INFO)
    assert stats["kvCacheStats"]["cacheHitRate"] == 0
    assert stats["inflightBatchingStats"]["avgNumDecodedTokensPerIter"] == 0


@pytest.mark.parametrize(
    ("native", "data"),
    [
        ({"type": "created", "num_blocks": 5}, {"num_blocks_per_cache_level": [5]}),
        (
            {
                "type": "stored",
                "parent_hash": None,
                "blocks": [{"block_hash": "ab", "tokens": [7, 8], "priority": 35}],
            },
            {
                "parent_hash": None,
                "blocks": [
                    {
                        "type": "stored_block",
                        "block_hash": "ab",
                        "tokens": [
                            {"type": "unique_token", "token_id": 7, "token_extra_id": 0},
                            {"type": "unique_token", "token_id": 8, "token_extra_id": 0},
                        ],
                        "lora_id": None,
                        "cache_level": 0,
                        "priority": 35,
                    }
                ],
            },
        ),
        ({"type": "removed", "block_hashes": ["ab"]}, {"block_hashes": ["ab"]}),
        (
            {"type": "updated", "block_hash": "ab", "priority": 90},
            {
                "block_hash": "ab",
                "cache_level": None,
                "priority": {"type": "event_diff", "old_value": None, "new_value": 90},
            },
        ),
        ({"type": "melted", "degrees": 5}, {"degrees": 5}),  # of a newer library
    ],
)
def test_a_kv_event(native: dict[str, object], data: dict[str, object]) -> None:
    assert to_kv_event({"event_id": 3, **native}) == {"event_id": 3, "data": {"type": native["type"], **data}}


class Source:
    """Gives a list each time it is asked."""

    def __init__(self, *answers: list[int]) -> None:
        self.answers = list(answers)
        self.num_asked = 0

    def take(self) -> list[int]:
        self.num_asked += 1
        return self.answers.pop(0) if self.answers else []


def test_polling_gives_what_there_is_at_once() -> None:
    source = Source([1, 2], [3])
    assert poll(source.take, 0) == [1, 2]
    assert source.num_asked == 1


@pytest.mark.parametrize("timeout_s", [10, None])
def test_polling_waits_for_something(timeout_s: float | None) -> None:
    assert poll(Source([], [], [3]).take, timeout_s) == [3]


def test_polling_ends() -> None:
    start_s = time.monotonic()
    assert poll(Source().take, 0.05) == []
    assert 0.05 <= time.monotonic() - start_s < 5


def test_polling_asynchronously_goes_on_until_nothing_comes() -> None:
    async def main() -> list[int]:
        return [item async for item in poll_async(Source([1, 2], [], [3]).take, 0.05)]

    start_s = time.monotonic()
    assert asyncio.run(main()) == [1, 2, 3]
    assert 0.05 <= time.monotonic() - start_s < 5
