"""runtime.Engine, the native engine from Python, on a tiny engine: requests, events, errors, ends."""

import os
import pickle
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from precast.runtime import (
    Engine,
    EngineLoadError,
    EngineOptions,
    EngineRequest,
    ErrorCode,
    FinishedEvent,
    FinishReason,
    InvalidRequestError,
    NativeError,
    QueueFullError,
    RankFailedError,
    Retention,
    ShutDownError,
    TokenEvent,
)
from precast.runtime.errors import make_error
from tests.kernel_levels import LEVELS, skip_what_cannot_run
from tests.tiny_llama import GREEDY_STEPS, PROMPTS, reference_greedy

ENDLESS = EngineRequest([5], max_tokens=None, temperature=0, ignore_eos=True)


@pytest.fixture(scope="module")
def engine(tiny_engine: Callable[..., Path]) -> Iterator[Engine]:
    with Engine(tiny_engine("gqa"), EngineOptions(num_threads=2)) as engine:
        yield engine


def tokens_of(events: list[Any]) -> list[int]:
    return [event.token_id for event in events if isinstance(event, TokenEvent)]


# --------------------------------------------------------------------------------------------------- requests


def test_requests_run_and_report(engine: Engine, tiny_llama: Callable[..., Path]) -> None:
    requests = [EngineRequest(prompt, max_tokens=GREEDY_STEPS, temperature=0, ignore_eos=True) for prompt in PROMPTS]
    for prompt, handle in zip(PROMPTS, engine.submit(requests), strict=True):
        before_ns = time.monotonic_ns()
        *tokens, last = handle.events()
        assert tokens_of(tokens) == reference_greedy(tiny_llama("gqa"), prompt)[0]
        assert isinstance(last, FinishedEvent)
        assert (last.reason, last.stop_token_id, last.error) == (FinishReason.LENGTH, None, None)
        assert (last.num_prompt_tokens, last.num_output_tokens) == (len(prompt), GREEDY_STEPS)
        times = [event.time_ns for event in (*tokens, last)]
        assert times == sorted(times)
        assert abs(times[-1] - before_ns) < 60e9  # the clock of time.monotonic_ns


def test_a_stop_token_ends_a_request_and_is_named(engine: Engine) -> None:
    (handle,) = engine.submit([EngineRequest([5], max_tokens=8, temperature=0, ignore_eos=True)])
    tokens = tokens_of(list(handle.events()))
    stop = tokens[2]
    (handle,) = engine.submit([EngineRequest([5], max_tokens=8, temperature=0, stop_token_ids=[stop])])
    *events, last = handle.events()
    assert tokens_of(events) == tokens[: tokens.index(stop) + 1]
    assert isinstance(last, FinishedEvent)
    assert (last.reason, last.stop_token_id) == (FinishReason.STOP, stop)


def test_cancelling(engine: Engine) -> None:
    (handle,) = engine.submit([ENDLESS])
    handle.get(timeout_s=30)
    assert handle.cancel()
    *_, last = handle.events()
    assert isinstance(last, FinishedEvent)
    assert last.reason is FinishReason.CANCELLED
    assert not handle.cancel()


def test_an_event_that_does_not_come(engine: Engine) -> None:
    (handle,) = engine.submit([EngineRequest([5], max_tokens=1)])
    list(handle.events())
    with pytest.raises(queue.Empty):
        handle.get(timeout_s=0.01)


def test_no_requests_are_no_error(engine: Engine) -> None:
    assert list(engine.submit([])) == []


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (EngineRequest([]), "the prompt is empty"),
        (EngineRequest([5] * 256), "the prompt has 256 tokens, and max_seq_len 256 must hold it and at least one more"),
        (EngineRequest([5, 320]), r"prompt_token_ids\[1\] is 320, outside the vocabulary of 320"),
        (EngineRequest([-1]), r"prompt_token_ids\[0\] is -1, outside the vocabulary of 320"),
        (EngineRequest([2**32 + 5]), "prompt_token_ids has 4294967301, which is no 32-bit integer"),
        (EngineRequest([5], stop_token_ids=[2**31]), "stop_token_ids has 2147483648, which is no 32-bit integer"),
        (EngineRequest([5], temperature=-1), "temperature must be finite and >= 0, got -1"),
        (EngineRequest([5], temperature=1e39), "temperature must be finite and >= 0, got inf"),
        (EngineRequest([5], top_p=0), r"top_p must be in \(0, 1\], got 0"),
    ],
)
def test_a_bad_request_is_refused_and_none_of_its_batch_runs(
    engine: Engine, request_: EngineRequest, message: str
) -> None:
    before = engine.stats()
    with pytest.raises(InvalidRequestError, match=message) as caught:
        engine.submit([EngineRequest([5]), request_])
    assert isinstance(caught.value, ValueError)
    assert caught.value.code == ErrorCode.INVALID_ARGUMENT
    assert engine.stats() == before
    list(engine.submit([EngineRequest([5], max_tokens=1)])[0].events())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_tokens": 0}, r"max_tokens must be between 1 and 2\*\*31 - 1, or None, got 0"),
        ({"max_tokens": 2**32 + 1}, r"max_tokens must be between 1 and 2\*\*31 - 1, or None, got 4294967297"),
        ({"top_k": -1}, r"top_k must be between 0 and 2\*\*31 - 1, got -1"),
        ({"top_k": 2**32}, r"top_k must be between 0 and 2\*\*31 - 1, got 4294967296"),
        ({"min_tokens": -1}, r"min_tokens must be between 0 and 2\*\*31 - 1, got -1"),
        ({"num_logprobs": -2}, r"num_logprobs must be between -1 and 2\*\*31 - 1, got -2"),
        ({"deadline_ns": -1}, r"deadline_ns must be between 0 and 2\*\*63 - 1, got -1"),
        ({"deadline_ns": 2**63}, r"deadline_ns must be between 0 and 2\*\*63 - 1, got 9223372036854775808"),
        ({"priority": float("inf")}, "priority must be finite, got inf"),
        ({"retention": [Retention(0, 2**32, 5)]}, r"retention has \(0, 4294967296, 5, 0\), of which one does not fit"),
    ],
)
def test_numbers_that_c_would_wrap_around_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EngineRequest([5], **arguments)


def test_only_the_lowest_64_bits_of_a_seed_count(engine: Engine) -> None:
    requests = [EngineRequest([5], max_tokens=8, seed=seed) for seed in (-1, 2**64 - 1, 2**65 - 1)]
    outputs = [tokens_of(list(handle.events())) for handle in engine.submit(requests)]
    assert outputs == [outputs[0]] * 3


def test_an_interrupted_submission_runs_nothing_and_harms_nobody(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C between the library's taking the requests and the return to Python."""
    submit = engine._native.submit

    def interrupted(*arguments: Any) -> None:
        submit(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(engine._native, "submit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.submit([ENDLESS] * 3)
    monkeypatch.undo()
    (handle,) = engine.submit([EngineRequest([5], max_tokens=3, ignore_eos=True)])
    assert len(list(handle.events())) == 4
    assert engine.stats()["num_active_requests"] == 0
    assert engine._requests == {}


def test_a_full_queue_takes_none_of_a_batch(tiny_engine: Callable[..., Path]) -> None:
    with Engine(tiny_engine("gqa"), EngineOptions(max_batch_size=1, max_queue_size=3)) as engine:
        handles = list(engine.submit([ENDLESS]))
        handles[0].get(timeout_s=30)  # it has left the queue
        handles += engine.submit([ENDLESS] * 2)
        with pytest.raises(QueueFullError, match="2 more requests would exceed max_queue_size: try again") as caught:
            engine.submit([ENDLESS] * 2)
        assert caught.value.code == ErrorCode.RESOURCE_EXHAUSTED
        assert len(engine._requests) == 3
        handles += engine.submit([ENDLESS])
        for handle in handles:
            assert handle.cancel()


def test_handles_of_a_full_queue_may_be_used_again(tiny_engine: Callable[..., Path]) -> None:
    with Engine(tiny_engine("gqa"), EngineOptions(max_batch_size=1, max_queue_size=1)) as engine:
        first = engine.submit([ENDLESS])[0]
        first.get(timeout_s=30)
        second = engine.submit([ENDLESS])[0]
        handles = engine.reserve(1)
        with pytest.raises(QueueFullError):
            engine.submit([EngineRequest([5], max_tokens=1)], handles)
        second.cancel()
        list(second.events())
        engine.submit([EngineRequest([5], max_tokens=1)], handles)
        first.cancel()
        assert isinstance(handles[0].get(timeout_s=30), TokenEvent)


def test_a_deadline_ends_a_request(engine: Engine) -> None:
    (handle,) = engine.submit([EngineRequest([5], deadline_ns=1)])
    (last,) = handle.events()
    assert isinstance(last, FinishedEvent)
    assert (last.reason, last.first_scheduled_ns) == (FinishReason.TIMEOUT, None)


def test_cached_tokens_are_reported_and_shared_by_salt(tiny_engine: Callable[..., Path]) -> None:
    prompt = list(range(20, 60))

    def num_cached(engine: Engine, **fields: Any) -> int:
        *_, last = engine.submit([EngineRequest(prompt, max_tokens=1, **fields)])[0].events()
        assert isinstance(last, FinishedEvent)
        return last.num_cached_tokens

    with Engine(tiny_engine("gqa")) as engine:
        salts = [b"", b"", b"a\0b", b"a\0c", b"a\0b"]
        assert [num_cached(engine, cache_salt=salt) for salt in salts] == [0, 32, 0, 0, 32]
        assert num_cached(engine, skip_block_reuse=True) == 0
    with Engine(tiny_engine("gqa"), EngineOptions(enable_block_reuse=False)) as engine:
        assert [num_cached(engine) for _ in range(2)] == [0, 0]


def test_a_receiver_takes_the_place_of_the_queue(engine: Engine) -> None:
    received: queue.SimpleQueue[Any] = queue.SimpleQueue()
    handles = engine.reserve(1)
    handles[0].receive = received.put
    engine.submit([EngineRequest([5], max_tokens=1)], handles)
    assert isinstance(received.get(timeout=30), TokenEvent)
    assert isinstance(received.get(timeout=30), FinishedEvent)
    with pytest.raises(queue.Empty):
        handles[0].get(timeout_s=0)


# ------------------------------------------------------------------------------------------------ what it says


HEADER = Path(__file__).resolve().parents[2] / "runtime" / "native" / "include" / "precast.h"
INFO = {
    "backend",
    "device",
    "precast_version",
    "path",
    "architecture",
    "vocab_size",
    "max_seq_len",
    "bos_token_id",
    "eos_token_ids",
    "dtype",
    "kv_cache_dtype",
    "tokens_per_block",
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "num_blocks",
    "kv_cache_bytes",
    "max_batch_size",
    "max_num_tokens",
    "num_threads",
    "kernel_level",
    "onnxruntime_version",
    "weights_bytes",
    "weights_huge_page_bytes",
}
STATS = {
    "steps",
    "num_active_requests",
    "num_queued_requests",
    "num_completed_requests",
    "num_preemptions",
    "num_blocks",
    "num_free_blocks",
    "num_cached_blocks",
    "tokens_per_block",
    "prompt_tokens_computed",
    "prompt_tokens_reused",
    "output_tokens",
    "allocated_blocks",
    "reused_blocks",
    "missed_blocks",
    "last_step_ns",
    "last_step_num_tokens",
    "last_step_num_sequences",
}


ITERATION = {
    "iter",
    "timestamp_ns",
    "latency_ns",
    "num_new_active_requests",
    "new_active_requests_queue_latency_ns",
    "num_active_requests",
    "num_queued_requests",
    "num_completed_requests",
    "num_paused_requests",
    "num_scheduled_requests",
    "num_context_requests",
    "num_generation_requests",
    "num_context_tokens",
    "used_blocks",
    "free_blocks",
    "max_blocks",
    "tokens_per_block",
    "allocated_blocks",
    "reused_blocks",
    "missed_blocks",
}


@pytest.mark.parametrize(
    ("function", "members"),
    [
        ("precast_engine_info", INFO),
        ("precast_engine_stats", STATS),
        ("precast_engine_iteration_stats", ITERATION),
        ("precast_engine_kv_events", {"event_id", "num_blocks", "parent_hash", "blocks", "block_hashes", "priority"}),
    ],
)
def test_the_header_names_every_member(function: str, members: set[str]) -> None:
    before = HEADER.read_text().partition(f"*{function}(const")[0]
    assert members <= set(re.findall(r"\w+", before.rpartition("/*")[2]))


def test_info(engine: Engine, tiny_engine: Callable[..., Path]) -> None:
    assert set(engine.info) == INFO
    expected = {
        "backend": "onnxruntime",
        "device": "cpu",
        "architecture": "LlamaForCausalLM",
        "vocab_size": 320,
        "max_seq_len": 256,
        "bos_token_id": 0,
        "eos_token_ids": [1],
        "dtype": "float32",
        "kv_cache_dtype": "float32",
        "tokens_per_block": 16,
        "num_threads": 2,
        "max_batch_size": 64,
        "max_num_tokens": 2048,
        "path": str(tiny_engine("gqa")),
    }
    assert {name: engine.info[name] for name in expected} == expected


def test_stats_count(engine: Engine) -> None:
    before = engine.stats()
    assert set(before) == STATS
    list(engine.submit([EngineRequest([5, 6, 7], max_tokens=4, ignore_eos=True)])[0].events())
    after = engine.stats()
    assert after["prompt_tokens_computed"] - before["prompt_tokens_computed"] == 3
    assert after["output_tokens"] - before["output_tokens"] == 4
    assert after["num_completed_requests"] - before["num_completed_requests"] == 1
    assert (after["num_active_requests"], after["num_queued_requests"]) == (0, 0)
    assert after["num_free_blocks"] == after["num_blocks"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_threads": 0}, ValueError, r"num_threads must be between 1 and 2\*\*32 - 1, or None, got 0"),
        ({"max_seq_len": 2**32}, ValueError, r"max_seq_len must be between 1 and 2\*\*32 - 1, or None, got 4294967296"),
        ({"kv_cache_bytes": 2**64}, ValueError, r"kv_cache_bytes must be between 1 and 2\*\*64 - 1, or None, got "),
        ({"max_batch_size": 1.5}, TypeError, "max_batch_size must be an integer or None, got 1.5"),
        ({"max_num_tokens": True}, TypeError, "max_num_tokens must be an integer or None, got True"),
        ({"max_queue_size": 0}, ValueError, r"max_queue_size must be between 1 and 2\*\*64 - 1, or None, got 0"),
        ({"kv_events_size": -1}, ValueError, r"kv_events_size must be between 0 and 2\*\*32 - 1, or None, got -1"),
    ],
)
def test_options_that_c_would_wrap_around_are_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        EngineOptions(**options)


def test_iterations_are_given_once(tiny_engine: Callable[..., Path]) -> None:
    with Engine(tiny_engine("gqa"), EngineOptions(iteration_stats_size=3)) as engine:
        assert engine.take_iteration_stats() == []
        list(engine.submit([EngineRequest([5, 6, 7], max_tokens=8, ignore_eos=True)])[0].events())
        iterations = engine.take_iteration_stats()
        assert [iteration["iter"] for iteration in iterations] == [6, 7, 8]  # older ones were dropped
        assert all(set(iteration) == ITERATION for iteration in iterations)
        assert abs(iterations[-1]["timestamp_ns"] - time.monotonic_ns()) < 60e9
        assert engine.take_iteration_stats() == []


def test_no_iterations_are_kept_unless_asked(engine: Engine) -> None:
    list(engine.submit([EngineRequest([5], max_tokens=2)])[0].events())
    assert engine.take_iteration_stats() == []
    assert engine.take_kv_events() == []


def test_kv_events_and_a_reset(tiny_engine: Callable[..., Path]) -> None:
    prompt = list(range(20, 40))
    with Engine(tiny_engine("gqa"), EngineOptions(kv_events_size=100)) as engine:
        (created,) = engine.take_kv_events()
        assert created == {"event_id": 0, "type": "created", "num_blocks": engine.info["num_blocks"]}
        list(engine.submit([EngineRequest(prompt, max_tokens=1)])[0].events())
        (stored,) = engine.take_kv_events()
        assert (stored["event_id"], stored["type"], stored["parent_hash"]) == (1, "stored", None)
        assert [block["tokens"] for block in stored["blocks"]] == [prompt[:16]]
        engine.reset_prefix_cache()
        list(engine.submit([EngineRequest([5], max_tokens=1)])[0].events())  # served after the reset
        (removed,) = engine.take_kv_events()
        assert (removed["type"], removed["block_hashes"]) == ("removed", [stored["blocks"][0]["block_hash"]])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_kernel_level_from_the_environment_generates(
    monkeypatch: pytest.MonkeyPatch,
    tiny_engine: Callable[..., Path],
    tiny_llama: Callable[..., Path],
    level: str,
    dtype: str | None,
) -> None:
    monkeypatch.setenv("PRECAST_KERNEL_LEVEL", level)
    try:
        engine = Engine(tiny_engine("gqa", dtype), EngineOptions(num_threads=2))
    except NativeError as error:
        skip_what_cannot_run(error)
        raise
    with engine:
        assert engine.info["kernel_level"] == level
        requests = [
            EngineRequest(prompt, max_tokens=GREEDY_STEPS, temperature=0, ignore_eos=True) for prompt in PROMPTS
        ]
        outputs = [tokens_of(list(handle.events())) for handle in engine.submit(requests)]
    for prompt, tokens in zip(PROMPTS, outputs, strict=True):
        assert len(tokens) == GREEDY_STEPS
        if dtype is None:  # bf16 may pick another of two tokens that are about as likely
            assert tokens == reference_greedy(tiny_llama("gqa"), prompt)[0]


def test_the_kernel_level_option_goes_before_the_environment(
    monkeypatch: pytest.MonkeyPatch, tiny_engine: Callable[..., Path]
) -> None:
    monkeypatch.setenv("PRECAST_KERNEL_LEVEL", "abacus")
    with Engine(tiny_engine("gqa"), EngineOptions(kernel_level="portable")) as engine:
        assert engine.info["kernel_level"] == "portable"
    with pytest.raises(NativeError, match='PRECAST_KERNEL_LEVEL is "abacus"; the levels are portable, avx2 and avx512'):
        Engine(tiny_engine("gqa"))
    with pytest.raises(NativeError, match='kernel_level is "sse2"; the levels are portable, avx2 and avx512'):
        Engine(tiny_engine("gqa"), EngineOptions(kernel_level="sse2"))


# ---------------------------------------------------------------------------------------------------- its ends


def test_a_path_that_is_no_engine(tmp_path: Path) -> None:
    with pytest.raises(EngineLoadError, match=f"^{tmp_path}: not an engine directory, it has no engine.json") as caught:
        Engine(tmp_path)
    assert caught.value.code == ErrorCode.NOT_FOUND


def test_shutdown_ends_requests_and_refuses_more(tiny_engine: Callable[..., Path]) -> None:
    engine = Engine(tiny_engine("gqa"), EngineOptions(max_batch_size=1, max_num_tokens=1))
    handles = engine.submit([ENDLESS] * 50)
    engine.shutdown()
    engine.shutdown()
    assert engine.closed
    for handle in handles:
        *_, last = handle.events()
        assert isinstance(last, FinishedEvent)
        assert last.reason in (FinishReason.CANCELLED, FinishReason.LENGTH)
        assert not handle.cancel()
    with pytest.raises(ShutDownError, match="the engine has been shut down"):
        engine.submit([ENDLESS])
    with pytest.raises(ShutDownError):
        engine.stats()


def test_submitting_and_shutting_down_at_once(tiny_engine: Callable[..., Path]) -> None:
    """Whoever comes too late is told so; nobody waits for ever."""
    for _ in range(5):
        engine = Engine(tiny_engine("gqa"))
        refused = threading.Event()

        def submit(engine: Engine = engine, refused: threading.Event = refused) -> None:
            try:
                while True:
                    list(engine.submit([EngineRequest([5], max_tokens=2)])[0].events())
            except ShutDownError:
                refused.set()

        thread = threading.Thread(target=submit)
        thread.start()
        time.sleep(0.005)
        engine.shutdown()
        thread.join(timeout=30)
        assert refused.is_set()


# ------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("code", "class_"),
    [
        (ErrorCode.INVALID_ARGUMENT, InvalidRequestError),
        (ErrorCode.NOT_FOUND, EngineLoadError),
        (ErrorCode.CORRUPT_ENGINE, EngineLoadError),
        (ErrorCode.SHUT_DOWN, ShutDownError),
        (ErrorCode.FORKED, NativeError),
        (ErrorCode.RANK_FAILED, RankFailedError),
        (99, NativeError),  # of a newer library
    ],
)
def test_errors_keep_their_kind_code_and_message(code: int, class_: type[NativeError]) -> None:
    error = make_error(code, "what is wrong")
    for each in (error, pickle.loads(pickle.dumps(error))):
        assert (type(each), each.code, str(each)) == (class_, code, "what is wrong")


def test_a_fork_is_noticed(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(NativeError, match="and this is its fork -1: load the engine again in this process") as caught:
        engine.submit([EngineRequest([5])])
    assert caught.value.code == ErrorCode.FORKED
