"""Promise 5: a request gives the same tokens and the same log probabilities, bit for bit, whatever runs beside it.

Each example is a whole run: an engine with drawn limits and threads, and requests that share prefixes, arrive in
waves, are greedy or sampled, and compete for a pool that may be far too small. Each request is then compared with the
same request alone, in an engine of one thread that reuses nothing and computes prompts in one piece. Log probabilities
of the raw logits are compared as floats that must be equal: a difference in any bit of a logit that matters shows.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from precast.runtime import (
    Engine,
    EngineOptions,
    EngineRequest,
    FinishedEvent,
    FinishReason,
    NativeError,
    RequestHandle,
    TokenEvent,
)
from precast.runtime.requests import CapacityPolicy
from tests.kernel_levels import LEVELS

MODELS = {
    "float32": ("gqa", "float32"),
    "bfloat16": ("gqa", "bfloat16"),
    "window": ("mistral", "float32"),
    "some_windows": ("qwen2_window", "bfloat16"),
}
NUM_KV_GROUPS = {"float32": 1, "bfloat16": 1, "window": 1, "some_windows": 2}
BLOCKS = [tuple((11 * i + 5 * j) % 320 for j in range(16)) for i in range(2)]
PREFIXES = [tuple((7 * i + 3 * j) % 320 for j in range(48)) for i in range(3)]
VOCAB_SIZE = 320

Output = tuple[list[tuple[int, tuple[tuple[int, float, int], ...]]], FinishReason]


@dataclasses.dataclass(frozen=True)
class Case:
    """A request that two runs can be compared by: hashable, unlike EngineRequest."""

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: tuple[tuple[str, float | int], ...]
    salt: bytes = b""
    priority: float = 0.5

    def request(self, *, alone: bool) -> EngineRequest:
        return EngineRequest(
            self.prompt,
            max_tokens=self.max_tokens,
            ignore_eos=True,
            num_logprobs=3,
            skip_block_reuse=alone,
            cache_salt=self.salt,
            priority=self.priority,
            **dict(self.sampling),  # type: ignore[arg-type]  # the names are those of EngineRequest
        )


SAMPLINGS: list[tuple[tuple[str, float | int], ...]] = [
    (("temperature", 0.0),),
    (("temperature", 0.0), ("repetition_penalty", 1.3), ("min_tokens", 2)),
    (("temperature", 1.0), ("seed", 1)),
    (("temperature", 0.7), ("top_k", 20), ("seed", 2)),
    (("temperature", 1.3), ("top_p", 0.8), ("seed", 3)),
    (("temperature", 1.0), ("min_p", 0.05), ("presence_penalty", 0.5), ("frequency_penalty", 0.3), ("seed", 4)),
]

# Prompts are put together from few blocks, so that they share prefixes, and blocks that follow different ones.
prompts = st.builds(
    lambda blocks, length, tail: (*itertools.chain(*blocks), *tail)[:length],
    st.lists(st.sampled_from(BLOCKS), max_size=3),
    st.integers(1, 50),
    st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=8),
)
cases = st.builds(
    Case,
    prompt=prompts,
    max_tokens=st.integers(2, 12),  # at least the min_tokens of SAMPLINGS
    sampling=st.sampled_from(SAMPLINGS),
    salt=st.sampled_from([b"", b"", b"other"]),
    priority=st.sampled_from([0.5, 0.5, 0.9]),
)


@st.composite
def crowds(draw: st.DrawFn) -> tuple[EngineOptions, list[list[Case]]]:
    """Limits of an engine, and requests in waves: each wave is submitted when the first of the one before has ended."""
    batch = draw(st.integers(1, 32))
    options = EngineOptions(
        num_threads=draw(st.integers(1, 3)),
        max_batch_size=batch,
        max_num_tokens=batch + draw(st.sampled_from([0, 1, 7, 16, 50, 400])),
        max_seq_len=64,
        capacity_policy=draw(st.sampled_from(CapacityPolicy)),
        enable_block_reuse=draw(st.sampled_from([True, True, True, False])),
    )
    num_blocks = draw(st.sampled_from([4, 5, 8, 16, 128]))  # of 16 tokens; 64 tokens are 4 blocks
    waves = draw(st.lists(st.lists(cases, min_size=1, max_size=16), min_size=1, max_size=3))
    return dataclasses.replace(options, kv_cache_bytes=num_blocks), waves


def run(path: Path, options: EngineOptions, waves: Sequence[Sequence[Case]], *, alone: bool = False) -> list[Output]:
    """What each request gave, in the order of submission."""
    with Engine(path, options) as engine:
        events: list[list[TokenEvent | FinishedEvent]] = []
        handles: list[RequestHandle] = []
        for wave in waves:
            if handles:
                events[-1].append(handles[-1].get(timeout_s=60))  # the wave before is in full swing
            submitted = engine.submit([case.request(alone=alone) for case in wave])
            handles.extend(submitted)
            events.extend([] for _ in submitted)
        for handle, seen in zip(handles, events, strict=True):
            while not (seen and isinstance(seen[-1], FinishedEvent)):
                seen.append(handle.get(timeout_s=60))
        stats = engine.stats()
        assert stats["num_free_blocks"] == stats["num_blocks"]
        return [_to_output(seen) for seen in events]


def _to_output(events: Sequence[TokenEvent | FinishedEvent]) -> Output:
    *tokens, last = events
    assert isinstance(last, FinishedEvent)
    chosen = []
    for token in tokens:
        assert isinstance(token, TokenEvent)
        chosen.append((token.token_id, tuple((one.token_id, one.logprob, one.rank) for one in token.logprobs)))
    return chosen, last.reason


@functools.cache
def alone(path: Path, case: Case, kernel_level: str | None = None) -> Output:
    options = EngineOptions(
        num_threads=1, max_batch_size=1, max_seq_len=64, enable_block_reuse=False, kernel_level=kernel_level
    )
    (output,) = run(path, options, [[case]], alone=True)
    return output


def _runs(path: Path, level: str) -> bool:
    try:
        Engine(path, EngineOptions(kernel_level=level)).shutdown()
    except NativeError as error:
        if "which this processor cannot run" not in str(error):
            raise
        return False
    return True


@pytest.mark.parametrize("model", MODELS)
def test_a_request_in_a_crowd_gives_what_it_gives_alone(model: str, tiny_engine: Callable[..., Path]) -> None:
    variant, dtype = MODELS[model]
    path = tiny_engine(variant, dtype)
    with Engine(path) as engine:
        block_bytes = engine.info["kv_cache_bytes"] // engine.info["num_blocks"]

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
    @given(crowd=crowds(), level=st.sampled_from([level for level in LEVELS if _runs(path, level)]))
    def check(crowd: tuple[EngineOptions, list[list[Case]]], level: str) -> None:
        options, waves = crowd
        assert options.kv_cache_bytes is not None
        kv_cache_bytes = options.kv_cache_bytes * NUM_KV_GROUPS[model] * block_bytes
        options = dataclasses.replace(options, kv_cache_bytes=kv_cache_bytes, kernel_level=level)
        outputs = run(path, options, waves)
        for case, output in zip([case for wave in waves for case in wave], outputs, strict=True):
            assert output == alone(path, case, options.kernel_level)

    check()


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("model", MODELS)
def test_a_prompt_gives_the_same_bits_in_chunks_of_any_size(
    model: str, num_threads: int, tiny_engine: Callable[..., Path]
) -> None:
    path = tiny_engine(*MODELS[model])
    case = Case(PREFIXES[0], 8, SAMPLINGS[2])
    for max_num_tokens in (1, 2, 3, 5, 16, 17, 31, 47, 48):
        options = EngineOptions(
            num_threads=num_threads, max_batch_size=1, max_num_tokens=max_num_tokens, max_seq_len=64
        )
        assert run(path, options, [[case]]) == [alone(path, case)]


@pytest.mark.parametrize("model", MODELS)
def test_a_prompt_gives_the_same_bits_after_a_prefix_hit_of_any_length(
    model: str, tiny_engine: Callable[..., Path]
) -> None:
    path = tiny_engine(*MODELS[model])
    case = Case(PREFIXES[1], 8, SAMPLINGS[4])
    for length in range(1, 49):
        other = Case((*PREFIXES[1][:length], 5), 1, SAMPLINGS[0])
        with Engine(path, EngineOptions(max_seq_len=64)) as engine:
            for one in (other, case):
                (handle,) = engine.submit([one.request(alone=False)])
                events = list(handle.events())
        last = events[-1]
        assert isinstance(last, FinishedEvent)
        assert last.num_cached_tokens == min(length // 16 * 16, 32)  # the last of 48 tokens is never found
        assert _to_output(events) == alone(path, case)


@pytest.mark.parametrize("model", ["float32", "bfloat16"])  # windows leave room enough
def test_a_request_gives_the_same_bits_after_preemption_at_any_step(
    model: str, tiny_engine: Callable[..., Path]
) -> None:
    """A more important request that grows into the whole pool, a token at a time, pushes this one out: earlier or later
    as its own length changes."""
    path = tiny_engine(*MODELS[model])
    with Engine(path) as engine:
        block_bytes = engine.info["kv_cache_bytes"] // engine.info["num_blocks"]
    case = Case(PREFIXES[2][:14], 20, SAMPLINGS[2])
    preempted_at = set()
    for length in range(1, 40, 3):
        big = Case(PREFIXES[0][:length], 63 - length, SAMPLINGS[0], priority=0.9)
        options = EngineOptions(
            max_batch_size=2,
            max_seq_len=64,
            kv_cache_bytes=4 * block_bytes,
            capacity_policy=CapacityPolicy.MAX_UTILIZATION,
        )
        with Engine(path, options) as engine:
            handles = engine.submit([one.request(alone=False) for one in (big, case)])
            events = [list(handle.events()) for handle in handles]
        last = events[1][-1]
        assert isinstance(last, FinishedEvent)
        if last.num_preemptions:
            preempted_at.add(length)
        assert [_to_output(seen) for seen in events] == [alone(path, big), alone(path, case)]
    assert len(preempted_at) > 8
