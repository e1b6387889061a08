"""What an LLM says of its iterations and its KV cache."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from precast import (
    LLM,
    KvCacheConfig,
    KvCacheRetentionConfig,
    SamplingParams,
    SchedulerConfig,
    TokenRangeRetentionConfig,
)

PROMPT = list(range(20, 40))
PARAMS = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)


def test_iterations(tiny_engine: Callable[..., Path]) -> None:
    with LLM(tiny_engine("gqa")) as llm:
        llm.generate(PROMPT, PARAMS, use_tqdm=False)
        stats = llm.get_stats()
        assert [each["iter"] for each in stats] == [1, 2, 3, 4]
        assert [each["numCompletedRequests"] for each in stats][-1] == 1
        assert [each["inflightBatchingStats"]["numCtxTokens"] for each in stats] == [20, 0, 0, 0]
        assert [each["inflightBatchingStats"]["numGenRequests"] for each in stats] == [0, 1, 1, 1]
        assert stats[0]["kvCacheStats"]["tokensPerBlock"] == 16
        start_s = time.monotonic()
        assert llm.get_stats(timeout=0.05) == []
        assert time.monotonic() - start_s < 1
        llm.generate(PROMPT, PARAMS, use_tqdm=False)
        last = llm.get_stats()[-1]["kvCacheStats"]
        assert (last["reusedBlocks"], last["missedBlocks"], last["cacheHitRate"]) == (1, 1, 0.5)


def test_iterations_for_a_loop(tiny_engine: Callable[..., Path]) -> None:
    async def main(llm: LLM) -> list[int]:
        future = llm.generate_async(PROMPT, PARAMS)
        seen = [each["iter"] async for each in llm.get_stats_async(timeout=0.2)]
        await future
        return seen

    with LLM(tiny_engine("gqa")) as llm:
        assert asyncio.run(main(llm)) == [1, 2, 3, 4]


def test_as_many_iterations_are_kept_as_asked(tiny_engine: Callable[..., Path]) -> None:
    with LLM(tiny_engine("gqa"), iter_stats_max_iterations=2) as llm:
        llm.generate(PROMPT, PARAMS, use_tqdm=False)
        assert [each["iter"] for each in llm.get_stats()] == [3, 4]


def test_no_iterations_are_kept_where_none_are_wanted(tiny_engine: Callable[..., Path]) -> None:
    message = "no statistics are kept: load with iter_stats_max_iterations above 0"
    with LLM(tiny_engine("gqa"), iter_stats_max_iterations=0) as llm, pytest.raises(RuntimeError, match=message):
        llm.get_stats()


def test_kv_cache_events(tiny_engine: Callable[..., Path]) -> None:
    with LLM(tiny_engine("gqa"), kv_cache_config=KvCacheConfig(event_buffer_max_size=100)) as llm:
        retention = KvCacheRetentionConfig([TokenRangeRetentionConfig(0, None, 80)])
        llm.generate(PROMPT, PARAMS, use_tqdm=False, kv_cache_retention_config=retention)
        created, stored = llm.get_kv_cache_events()
        assert created == {
            "event_id": 0,
            "data": {"type": "created", "num_blocks_per_cache_level": [llm.info["num_blocks"]]},
        }
        (block,) = stored["data"]["blocks"]
        assert (stored["event_id"], stored["data"]["type"], stored["data"]["parent_hash"]) == (1, "stored", None)
        assert [token["token_id"] for token in block["tokens"]] == PROMPT[:16]
        assert block["priority"] == 80
        llm.reset_prefix_cache()

        async def follow() -> list[dict[str, Any]]:
            return [event async for event in llm.get_kv_cache_events_async(timeout=0.1)]

        (removed,) = asyncio.run(follow())
        assert removed["data"] == {"type": "removed", "block_hashes": [block["block_hash"]]}


def test_no_events_are_kept_unless_asked(tiny_engine: Callable[..., Path]) -> None:
    with LLM(tiny_engine("gqa")) as llm, pytest.raises(RuntimeError, match="no events are kept: load with "):
        llm.get_kv_cache_events()


def test_block_reuse_can_be_turned_off(tiny_engine: Callable[..., Path]) -> None:
    with LLM(tiny_engine("gqa"), kv_cache_config=KvCacheConfig(enable_block_reuse=False)) as llm:
        cached = [llm.generate(PROMPT, PARAMS, use_tqdm=False).num_cached_tokens for _ in range(2)]
    assert cached == [0, 0]


@pytest.mark.parametrize("policy", ["GUARANTEED_NO_EVICT", "MAX_UTILIZATION", "STATIC_BATCH"])
def test_every_policy_gives_the_same_tokens(tiny_engine: Callable[..., Path], policy: str) -> None:
    prompts = [[20 + i] * (10 * i + 1) for i in range(12)]
    params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
    with LLM(tiny_engine("gqa")) as llm:
        expected = [output.outputs for output in llm.generate(prompts, params, use_tqdm=False)]
        block_bytes = llm.info["kv_cache_bytes"] // llm.info["num_blocks"]
    scheduler = SchedulerConfig(capacity_scheduler_policy=policy)
    with LLM(tiny_engine("gqa"), scheduler_config=scheduler, kv_cache_bytes=24 * block_bytes) as llm:
        outputs = llm.generate(prompts, params, use_tqdm=False)
        assert (llm.counters["num_preemptions"] > 0) == (policy == "MAX_UTILIZATION")
    assert [output.outputs for output in outputs] == expected
