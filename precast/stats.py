"""What an engine reports of its iterations and its KV cache, with TensorRT-LLM's keys."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import datetime
from typing import Any, TypeVar

_POLL_S = 0.01

T = TypeVar("T")


def poll(take: Callable[[], list[T]], timeout_s: float | None) -> list[T]:
    """What ``take`` gives; while that is nothing, again and again for ``timeout_s`` seconds (None: without end)."""
    end_s = float("inf") if timeout_s is None else time.monotonic() + timeout_s
    while not (items := take()) and (left_s := end_s - time.monotonic()) > 0:
        time.sleep(min(left_s, _POLL_S))
    return items


async def poll_async(take: Callable[[], list[T]], timeout_s: float | None) -> AsyncIterator[T]:
    """One item after the other, until none comes for ``timeout_s`` seconds (None: without end)."""
    import asyncio

    last_s = time.monotonic()
    while timeout_s is None or time.monotonic() - last_s <= timeout_s:
        items = take()
        for item in items:
            yield item
        if items:
            last_s = time.monotonic()
        else:
            await asyncio.sleep(_POLL_S)


def to_iteration_stats(iteration: Mapping[str, Any], info: Mapping[str, Any]) -> dict[str, Any]:
    """One iteration of ``precast_engine_iteration_stats``; ``info`` is that of ``precast_engine_info``.

    Times are in milliseconds and memory is in bytes; latency of the queue is summed over the new requests. There is
    one micro-batch, and no memory of a GPU.
    """
    reused, missed = iteration["reused_blocks"], iteration["missed_blocks"]
    num_generating = iteration["num_generation_requests"]
    return {
        "timestamp": _wall_clock(iteration["timestamp_ns"]),
        "iter": iteration["iter"],
        "iterLatencyMS": iteration["latency_ns"] / 1e6,
        "newActiveRequestsQueueLatencyMS": iteration["new_active_requests_queue_latency_ns"] / 1e6,
        "numNewActiveRequests": iteration["num_new_active_requests"],
        "numActiveRequests": iteration["num_active_requests"],
        "numQueuedRequests": iteration["num_queued_requests"],
        "numCompletedRequests": iteration["num_completed_requests"],
        "maxNumActiveRequests": info["max_batch_size"],
        "maxBatchSizeStatic": info["max_batch_size"],
        "maxNumTokensStatic": info["max_num_tokens"],
        "gpuMemUsage": 0,
        "cpuMemUsage": _resident_bytes(),
        "pinnedMemUsage": 0,
        "kvCacheStats": {
            "maxNumBlocks": iteration["max_blocks"],
            "freeNumBlocks": iteration["free_blocks"],
            "usedNumBlocks": iteration["used_blocks"],
            "tokensPerBlock": iteration["tokens_per_block"],
            "allocTotalBlocks": iteration["allocated_blocks"] + reused,
            "allocNewBlocks": iteration["allocated_blocks"],
            "reusedBlocks": reused,
            "missedBlocks": missed,
            "cacheHitRate": reused / (reused + missed) if reused + missed else 0.0,
        },
        "inflightBatchingStats": {
            "numScheduledRequests": iteration["num_scheduled_requests"],
            "numContextRequests": iteration["num_context_requests"],
            "numGenRequests": num_generating,
            "numPausedRequests": iteration["num_paused_requests"],
            "numCtxTokens": iteration["num_context_tokens"],
            "microBatchId": 0,
            "avgNumDecodedTokensPerIter": 1.0 if num_generating else 0.0,
        },
    }


def _wall_clock(monotonic_ns: int) -> str:
    """Local time of a moment of CLOCK_MONOTONIC, as TensorRT-LLM writes it."""
    unix_s = time.time() - (time.monotonic_ns() - monotonic_ns) / 1e9
    return datetime.fromtimestamp(unix_s).strftime("%m-%d-%Y %H:%M:%S.%f")


def _resident_bytes() -> int:
    # No file object: one that Ctrl-C leaves open would be reported by the interpreter.
    descriptor = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
    try:
        num_pages = int(os.read(descriptor, 4096).split()[1])
    finally:
        os.close(descriptor)
    return num_pages * os.sysconf("SC_PAGE_SIZE")


def to_kv_event(event: Mapping[str, Any]) -> dict[str, Any]:
    """One event of ``precast_engine_kv_events``. A type of a newer library comes through as it is."""
    members = dict(event)
    event_id, kind = members.pop("event_id"), members.pop("type")
    data = _KV_EVENTS[kind](members) if kind in _KV_EVENTS else members
    return {"event_id": event_id, "data": {"type": kind, **data}}


def _created(event: Mapping[str, Any]) -> dict[str, Any]:
    return {"num_blocks_per_cache_level": [event["num_blocks"]]}


def _stored(event: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "parent_hash": event["parent_hash"],
        "blocks": [
            {
                "type": "stored_block",
                "block_hash": block["block_hash"],
                "tokens": [
                    {"type": "unique_token", "token_id": token_id, "token_extra_id": 0} for token_id in block["tokens"]
                ],
                "lora_id": None,
                "cache_level": 0,
                "priority": block["priority"],
            }
            for block in event["blocks"]
        ],
    }


def _removed(event: Mapping[str, Any]) -> dict[str, Any]:
    return {"block_hashes": event["block_hashes"]}


def _updated(event: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "block_hash": event["block_hash"],
        "cache_level": None,  # there is one level
        "priority": {"type": "event_diff", "old_value": None, "new_value": event["priority"]},
    }


_KV_EVENTS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "created": _created,
    "stored": _stored,
    "removed": _removed,
    "updated": _updated,
}
