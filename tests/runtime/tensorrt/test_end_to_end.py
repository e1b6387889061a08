"""Requests on engines for TensorRT: the native scheduler here, the session in a worker process with a fake device.

What requests give is what transformers computes, or what they give alone, whatever runs beside them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from precast.checkpoints.engine_dir import read_manifest
from precast.checkpoints.engine_kv import kv_page_bytes
from precast.runtime import Engine, EngineOptions, EngineRequest, FinishReason
from precast.runtime.requests import CapacityPolicy
from tests.processes import name_of
from tests.runtime.tensorrt.conftest import Continuation
from tests.runtime.tensorrt.nan_model import NAN_TOKEN
from tests.runtime.tensorrt.workers import Answer, Workers, fake_workers, greedy, run, run_alone
from tests.runtime.tensorrt.worlds import FakeEngine

LOGPROB_TOLERANCE = 0.1


@pytest.fixture(scope="module", autouse=True)
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """All engines of this file have workers with fake devices, which nothing misuses."""
    with fake_workers(tmp_path_factory.mktemp("workers")) as found:
        yield found


@pytest.fixture(scope="module")
def engine(workers: Workers, fake_engine: FakeEngine) -> Iterator[Engine]:
    """Four at once, prompts in chunks of what is left of 6 tokens."""
    with Engine(fake_engine("float16"), EngineOptions(max_batch_size=4, max_num_tokens=6)) as opened:
        yield opened


@pytest.fixture(scope="module")
def alone(workers: Workers, fake_engine: FakeEngine) -> Iterator[Engine]:
    """One at a time, prompts in one piece, and nothing reused."""
    options = EngineOptions(max_batch_size=1, max_num_tokens=32, enable_block_reuse=False)
    with Engine(fake_engine("float16"), options) as opened:
        yield opened


def requests_of(continuations: list[Continuation], **fields: Any) -> list[EngineRequest]:
    return [greedy(each.prompt, len(each.tokens), **fields) for each in continuations]


def check_continuations(answers: list[Answer], continuations: list[Continuation]) -> None:
    assert [answer.tokens for answer in answers] == [each.tokens for each in continuations]
    assert {answer.end.reason for answer in answers} == {FinishReason.LENGTH}


def test_an_engine_says_what_it_runs_on(engine: Engine, workers: Workers) -> None:
    info = engine.info
    assert (info["backend"], info["device"]) == ("tensorrt", "Fake GPU")
    assert (info["max_batch_size"], info["max_num_tokens"]) == (4, 6)
    assert info["kv_cache_bytes"] < 64 << 20  # of the fake device
    assert any(name_of(pid).startswith("python") for pid in workers.running())


def test_many_prompts_at_once_and_in_chunks(engine: Engine, continuations: list[Continuation]) -> None:
    for _ in range(2):  # the second time prefixes are there
        check_continuations(run(engine, requests_of(continuations)), continuations)
    check_continuations(run(engine, requests_of(continuations[::-1])), continuations[::-1])
    assert engine.stats()["num_free_blocks"] == engine.info["num_blocks"]


def test_prompts_one_by_one(alone: Engine, continuations: list[Continuation]) -> None:
    check_continuations(run_alone(alone, requests_of(continuations)), continuations)


SAMPLINGS: list[dict[str, Any]] = [
    {"temperature": 1.0, "top_k": 5},
    {"temperature": 0.8, "top_k": 40, "top_p": 0.9},
    {"temperature": 1.0, "top_p": 0.7},
    {"temperature": 1.3},
    {"temperature": 0.7, "top_k": 200, "min_p": 0.02},
    {"temperature": 0.0, "repetition_penalty": 1.3},
    {"temperature": 0.0},
]


@pytest.mark.parametrize("num_logprobs", [-1, 3, 64, 65, 100], ids=lambda count: f"logprobs {count}")
def test_sampling_beside_others_and_alone(
    num_logprobs: int, engine: Engine, alone: Engine, continuations: list[Continuation]
) -> None:
    """Rows that want candidates, and above 64 of them whole rows: the seed decides, and not the batch."""
    requests = [
        EngineRequest(each.prompt, max_tokens=5, seed=index, ignore_eos=True, num_logprobs=num_logprobs, **sampling)
        for index, (each, sampling) in enumerate(zip(continuations, SAMPLINGS, strict=False))
    ]
    together, by_itself = run(engine, requests), run_alone(alone, requests)
    assert [answer.tokens for answer in together] == [answer.tokens for answer in by_itself]
    for one, other in zip(together, by_itself, strict=True):
        for first, second in zip(one.token_events, other.token_events, strict=True):
            # The token itself, and the k most likely, of which it may be one.
            expected = {0} if num_logprobs < 0 else {num_logprobs, num_logprobs + 1}
            assert len(first.logprobs) in expected
            values = {each.token_id: each.logprob for each in second.logprobs}
            shared = [each for each in first.logprobs if each.token_id in values]
            assert len(shared) >= len(first.logprobs) - 2  # the last place may go to another
            assert all(abs(each.logprob - values[each.token_id]) < LOGPROB_TOLERANCE for each in shared)


def test_seeds_differ(engine: Engine, continuations: list[Continuation]) -> None:
    """Or the test above would show nothing."""
    prompt = continuations[3].prompt
    requests = [EngineRequest(prompt, max_tokens=6, seed=seed, ignore_eos=True, top_k=40) for seed in range(3)]
    assert len({tuple(answer.tokens) for answer in run(engine, requests)}) == 3


def test_preempted_requests_give_the_same_tokens(fake_engine: FakeEngine, continuations: list[Continuation]) -> None:
    """All four fit into a block each, and not all of them into two."""
    path = fake_engine("float16")
    page = kv_page_bytes(read_manifest(path).ranks[0].kv_caches)
    options = EngineOptions(
        max_batch_size=4,
        max_num_tokens=16,
        max_seq_len=48,
        kv_cache_bytes=4 * page,
        capacity_policy=CapacityPolicy.MAX_UTILIZATION,
    )
    long = continuations[4:8]  # prompts of 9 to 15 tokens, which end in their second block
    assert all(len(each.prompt) <= 16 < len(each.prompt) + len(each.tokens) for each in long)
    with Engine(path, options) as engine:
        assert engine.info["num_blocks"] == 4
        check_continuations(run(engine, requests_of(long)), long)
        assert engine.stats()["num_preemptions"] > 0


def test_prefixes_are_reused(engine: Engine, continuations: list[Continuation]) -> None:
    long = continuations[-1]
    assert len(long.prompt) > 16
    salted = greedy(long.prompt, len(long.tokens), cache_salt=b"somebody else's")
    first, second = run_alone(engine, [salted, salted])
    assert (first.end.num_cached_tokens, second.end.num_cached_tokens) == (0, 16)
    check_continuations([first, second], [long, long])


def test_stop_tokens(engine: Engine, continuations: list[Continuation]) -> None:
    each = continuations[2]
    stop = each.tokens[3]
    (answer,) = run(engine, [EngineRequest(each.prompt, max_tokens=8, temperature=0, stop_token_ids=[stop])])
    assert answer.tokens == each.tokens[: each.tokens.index(stop) + 1]
    assert (answer.end.reason, answer.end.stop_token_id) == (FinishReason.STOP, stop)


def test_cancelling_one_of_several(engine: Engine, continuations: list[Continuation]) -> None:
    others = continuations[:3]
    endless = EngineRequest([5, 6, 7], max_tokens=50, ignore_eos=True)
    (handle,) = engine.submit([endless])
    handles = engine.submit(requests_of(others))
    events = [handle.get(timeout_s=60)]
    assert handle.cancel()
    events += list(handle.events())
    assert Answer(events).end.reason is FinishReason.CANCELLED
    assert len(events) < 50
    check_continuations([Answer(list(each.events())) for each in handles], others)
    assert engine.stats()["num_free_blocks"] == engine.info["num_blocks"]


def test_sequences_up_to_the_limit(engine: Engine) -> None:
    """And no block more than the plan's tables have columns."""
    (answer,) = run(engine, [greedy([5, 9, 200], 61)])
    assert len(answer.tokens) == 61
    assert answer.end.reason is FinishReason.LENGTH


@pytest.mark.parametrize("variant", ["qwen2_window", "bfloat16_tied"])
def test_models_with_windows_and_of_bfloat16(variant: str, fake_engine: FakeEngine) -> None:
    """Beside others and alone: blocks that windows have left behind are given back, and used by others."""
    path = fake_engine(variant)
    prompts = [[(11 * i + 3 * j) % 300 + 2 for j in range(4 + 6 * i)] for i in range(5)]
    requests = [greedy(prompt, 20, num_logprobs=1) for prompt in prompts]
    with Engine(path, EngineOptions(max_batch_size=4, max_num_tokens=7)) as engine:
        together = run(engine, requests)
    with Engine(path, EngineOptions(max_batch_size=1, enable_block_reuse=False)) as engine:
        by_itself = run_alone(engine, requests)
    for one, other in zip(together, by_itself, strict=True):
        # Rounding may choose among tokens that are as likely; up to there, all of them are the same.
        same = _num_equal(one.tokens, other.tokens)
        if same < len(one.tokens):
            first, second = one.token_events[same].logprobs[0], other.token_events[same].logprobs[0]
            assert abs(first.logprob - second.logprob) < LOGPROB_TOLERANCE
        assert same > 3


def _num_equal(first: list[int], second: list[int]) -> int:
    return next((i for i, pair in enumerate(zip(first, second, strict=True)) if pair[0] != pair[1]), len(first))


def test_rows_that_are_nan_fail_their_own_request(nan_engine: Path, continuations: list[Continuation]) -> None:
    """Its token comes from the device, from candidates or from whole rows: the others never see it."""
    good = [each for each in continuations if NAN_TOKEN not in (*each.prompt, *each.tokens)][:6]
    bad: list[dict[str, Any]] = [
        {"temperature": 0},
        {"temperature": 1, "top_k": 5},
        {"temperature": 1},
        {"temperature": 0, "num_logprobs": 3},
        {"temperature": 0, "num_logprobs": 100},
    ]
    requests = requests_of(good)
    for index, fields in enumerate(bad):
        requests.insert(2 * index, EngineRequest([5, NAN_TOKEN, 7 + index], max_tokens=6, ignore_eos=True, **fields))
    with Engine(nan_engine, EngineOptions(max_batch_size=4, max_num_tokens=16)) as engine:
        for _ in range(2):
            answers = run(engine, requests)
            failed = [answers[2 * index] for index in range(len(bad))]
            rest = [answer for answer in answers if not any(answer is each for each in failed)]
            check_continuations(rest, good)
            for answer in failed:
                assert answer.tokens == []
                assert answer.end.reason is FinishReason.ERROR
                assert "the weights or this prompt overflow" in str(answer.end.error)
        assert engine.stats()["num_free_blocks"] == engine.info["num_blocks"]
