"""Promise 5: a request gives the same tokens and the same log probabilities, bit for bit, whatever runs beside it.

Each example is a whole run: an engine with drawn limits and threads, and requests that share prefixes, arrive in
waves, are greedy or sampled, and compete for a pool that may be far too small. Each request is then compared with the
same request alone, in an engine of one thread that reuses nothing and computes prompts in one piece. Log probabilities
of the raw logits are compared as floats that must be equal: a difference in any bit of a logit that matters shows.

test_preemption.py does the same for requests that are preempted at every step there is.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from precast.runtime import Engine, EngineOptions, NativeError
from precast.runtime.model import Model
from precast.runtime.requests import CapacityPolicy
from tests.kernel_levels import LEVELS
from tests.runtime.comparing import (
    MODELS,
    SAMPLINGS,
    TOKENS_PER_BLOCK,
    VOCAB_SIZE,
    Case,
    Output,
    alone,
    block_bytes,
    run,
)

PREFIXES = [tuple((7 * i + 3 * j) % VOCAB_SIZE for j in range(48)) for i in range(3)]

Waves = Sequence[Sequence[Case]]
Crowd = tuple[EngineOptions, list[list[Case]]]
Runner = Callable[[Path, EngineOptions, Waves], list[Output]]

# A crowd is drawn in few numbers, three for each request, or hypothesis gives up before a failure is small.
# Prompts are put together from few blocks, so that they share prefixes, and blocks that follow different ones.
_FIRST, _OTHER = (tuple((11 * i + 5 * j) % VOCAB_SIZE for j in range(TOKENS_PER_BLOCK)) for i in range(2))
BLOCKS = (_FIRST, _OTHER, (*_FIRST[:5], *_OTHER[5:]))
LONGEST_PROMPTS = [(*a, *b, *c, 0) for a in BLOCKS for b in BLOCKS for c in BLOCKS]
MANNERS = list(itertools.product(range(2, 13), SAMPLINGS, (b"", b"", b"other"), (0.5, 0.5, 0.9)))
cases = st.builds(
    lambda prompt, length, manner: Case(prompt[:length], *manner),
    st.sampled_from(LONGEST_PROMPTS),
    st.integers(1, len(LONGEST_PROMPTS[0])),
    st.sampled_from(MANNERS),
)


@st.composite
def crowds(draw: st.DrawFn) -> Crowd:
    """Limits of an engine, and requests in waves: each wave is submitted when the last of the one before has begun."""
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
    waves = [draw(st.lists(cases, max_size=16)) for _ in range(3)]
    return dataclasses.replace(options, kv_cache_bytes=num_blocks), [wave for wave in waves if wave]


def property_settings(**others: Any) -> settings:
    # Not Phase.explain: it traces every line that Python runs, for minutes.
    return settings(
        phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
        max_examples=45,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        **others,
    )


def run_outputs(path: Path, options: EngineOptions, waves: Waves) -> list[Output]:
    return run(path, options, waves).outputs


def check_crowd(
    path: Path, num_kv_groups: int, crowd: Crowd, level: str | None = None, runner: Runner = run_outputs
) -> None:
    """The property."""
    options, waves = crowd
    assert options.kv_cache_bytes is not None
    kv_cache_bytes = options.kv_cache_bytes * num_kv_groups * block_bytes(path)
    options = dataclasses.replace(options, kv_cache_bytes=kv_cache_bytes, kernel_level=level)
    outputs = runner(path, options, waves)
    for case, output in zip([case for wave in waves for case in wave], outputs, strict=True):
        assert output == alone(path, case, level)


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
    path = MODELS[model].engine(tiny_engine)

    @property_settings()
    @given(crowd=crowds(), level=st.sampled_from([level for level in LEVELS if _runs(path, level)]))
    def check(crowd: Crowd, level: str) -> None:
        check_crowd(path, MODELS[model].num_kv_groups, crowd, level)

    check()


# ------------------------------------------------------------------------------------- does the property see mistakes


def run_with_orphaned_blocks(path: Path, options: EngineOptions, waves: Waves) -> list[Output]:
    """As if blocks were shared by their own tokens and place alone, whatever precedes them.

    A request whose second or later block an earlier one of the same salt had at the same place takes that one's prefix
    for its own. The engine is the real one; it is handed the prompt that such a request would have read.
    """
    prefixes: dict[tuple[bytes, int, tuple[int, ...]], tuple[int, ...]] = {}

    def misled(case: Case) -> Case:
        prompt = case.prompt
        ends = range(TOKENS_PER_BLOCK, len(prompt), TOKENS_PER_BLOCK)  # the last token is never found
        found = None
        for end in ends:
            key = (case.salt, end, prompt[end - TOKENS_PER_BLOCK : end])
            found = prefixes.setdefault(key, prompt[:end])
        return case if found is None else dataclasses.replace(case, prompt=(*found, *prompt[len(found) :]))

    reuses = options.enable_block_reuse
    return run_outputs(path, options, [[misled(case) if reuses else case for case in wave] for wave in waves])


def test_the_property_finds_a_wrong_share_and_shrinks_it(tiny_engine: Callable[..., Path]) -> None:
    """The test of the test: with a planted mistake, the same draws and the same comparison must fail, and what is left
    of the crowd must be the two requests that it takes. (Sharing across salts would not show: it gives the same bits.
    test_prefix_reuse.py counts it.)"""
    path = MODELS["float32"].engine(tiny_engine)
    failed: list[Crowd] = []

    @property_settings(database=None, derandomize=True)
    @given(crowd=crowds())
    def check(crowd: Crowd) -> None:
        try:
            check_crowd(path, 1, crowd, runner=run_with_orphaned_blocks)
        except AssertionError:
            failed.append(crowd)
            raise

    with pytest.raises(AssertionError):
        check()
    options, waves = failed[-1]  # the one that is reported
    first, second = [case for wave in waves for case in wave]
    assert options.enable_block_reuse
    assert len(first.prompt) == len(second.prompt) == 2 * TOKENS_PER_BLOCK + 1
    assert first.prompt[:TOKENS_PER_BLOCK] != second.prompt[:TOKENS_PER_BLOCK]
    assert first.prompt[TOKENS_PER_BLOCK:-1] == second.prompt[TOKENS_PER_BLOCK:-1]
    assert first.salt == second.salt
    check_crowd(path, 1, (options, waves))  # what failed was the mistake


# --------------------------------------------------------------------------------------------- one thing after another


@pytest.mark.parametrize("model", MODELS)
def test_a_request_among_31_others_gives_what_it_gives_alone(model: str, tiny_engine: Callable[..., Path]) -> None:
    """Each of the 32 is once the one. Greedy and sampled, all in one step: while they generate, and before, while some
    prompts are still being computed."""
    path = MODELS[model].engine(tiny_engine)
    crowd = [Case(PREFIXES[i % 3][: 3 + i % 29], 12, SAMPLINGS[i % len(SAMPLINGS)]) for i in range(32)]
    options = EngineOptions(max_batch_size=32, max_num_tokens=256, max_seq_len=64, iteration_stats_size=100)
    done = run(path, options, [crowd])
    assert done.outputs == [alone(path, case) for case in crowd]
    full = [iteration for iteration in done.iterations if iteration["num_scheduled_requests"] == 32]
    assert len(full) >= 10
    assert any(iteration["num_context_requests"] and iteration["num_generation_requests"] for iteration in full)


@pytest.mark.parametrize("model", MODELS)
def test_a_prompt_gives_the_same_bits_in_chunks_of_any_size(model: str, tiny_engine: Callable[..., Path]) -> None:
    """In an engine, where chunks that could end at the end of a block do."""
    path = MODELS[model].engine(tiny_engine)
    case = Case(PREFIXES[0], 4, SAMPLINGS[2])
    for size in range(1, 49):
        options = EngineOptions(
            num_threads=1 + size % 3, max_batch_size=1, max_num_tokens=size, max_seq_len=64, iteration_stats_size=100
        )
        done = run(path, options, [[case]])
        chunks = [iteration["num_context_tokens"] for iteration in done.iterations]
        assert chunks[0] == (size if size < TOKENS_PER_BLOCK else size - size % TOKENS_PER_BLOCK)
        assert sum(chunks) == len(case.prompt)
        assert done.outputs == [alone(path, case)]


@pytest.mark.parametrize("model", MODELS)
def test_all_logits_have_the_same_bits_in_chunks_of_any_size(model: str, tiny_engine: Callable[..., Path]) -> None:
    """In the forward pass alone, whose chunks end anywhere, also beyond the first block."""
    path = MODELS[model].engine(tiny_engine)
    options = EngineOptions(num_threads=1, max_batch_size=1, max_seq_len=64)
    with Model(path, options) as whole:
        expected = whole.logits(PREFIXES[0])
    for size in range(1, 49):
        num_threads = 1 + (size + 1) % 3  # another than above
        with Model(path, dataclasses.replace(options, num_threads=num_threads, max_num_tokens=size)) as in_chunks:
            logits = in_chunks.logits(PREFIXES[0])
        assert np.array_equal(logits.view(np.uint32), expected.view(np.uint32)), size


@pytest.mark.parametrize("model", MODELS)
def test_a_prompt_gives_the_same_bits_after_a_prefix_hit_of_any_length(
    model: str, tiny_engine: Callable[..., Path]
) -> None:
    path = MODELS[model].engine(tiny_engine)
    case = Case(PREFIXES[1], 8, SAMPLINGS[4])
    for length in range(1, 49):
        other = Case((*PREFIXES[1][:length], 5), 1, SAMPLINGS[0])
        options = EngineOptions(max_batch_size=1, max_seq_len=64)  # one after the other
        done = run(path, options, [[other, case]])
        assert done.ends[1].num_cached_tokens == min(length // 16 * 16, 32)  # the last of 48 tokens is never found
        assert done.outputs[1] == alone(path, case)
