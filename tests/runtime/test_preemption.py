"""Promise 5 where it is hardest: a request that is preempted, after any of its tokens or within its prompt, once or
several times, and computed again, gives the same tokens and log probabilities, bit for bit, as alone.

When it is preempted is decided by more important requests that grow into a pool that is just too small; a test computes
nothing about that, it reads when it was from the engine's own statistics, and says which moments it wants to have seen.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from precast.runtime import EngineOptions
from precast.runtime.requests import CapacityPolicy
from tests.runtime.comparing import MODELS, SAMPLINGS, VOCAB_SIZE, Case, Run, alone, block_bytes, run

GREEDY = SAMPLINGS[1]
SAMPLED = SAMPLINGS[5]  # with penalties: what they count must survive, too


class Preemption(NamedTuple):
    """When the only request that can be preempted was.

    Attributes:
        num_output_tokens: it had given.
        num_prompt_tokens: had been computed of all prompts, in all steps before.
    """

    num_output_tokens: int
    num_prompt_tokens: int


def preemptions(done: Run) -> list[Preemption]:
    """Of the last request of a run. No other was preempted.

    A request is preempted while a step is decided, so it is not in that step, and the first iteration that counts it as
    paused is that step. Its tokens of steps before that one were given to the caller before.
    """
    *others, end = done.ends
    assert all(other.num_preemptions == 0 for other in others)
    found = []
    num_paused = 0
    for i, iteration in enumerate(done.iterations):
        if iteration["num_paused_requests"] > num_paused:
            num_output_tokens = sum(token.time_ns < iteration["timestamp_ns"] for token in done.tokens[-1])
            num_prompt_tokens = sum(earlier["num_context_tokens"] for earlier in done.iterations[:i])
            found.append(Preemption(num_output_tokens, num_prompt_tokens))
        num_paused = iteration["num_paused_requests"]
    assert len(found) == end.num_preemptions == done.stats["num_preemptions"]
    return found


class World(NamedTuple):
    """A pool, and requests that are more important than the one that is looked at, each of its own prompt.

    Attributes:
        num_blocks: of the pool.
        important: length of prompt and output of each.
    """

    num_blocks: int
    important: Sequence[tuple[int, int]]

    def run(self, path: Path, case: Case, **options: Any) -> Run:
        important = [
            Case(tuple((7 * i + 3 * j) % VOCAB_SIZE for j in range(length)), max_tokens, SAMPLINGS[0], priority=0.9)
            for i, (length, max_tokens) in enumerate(self.important, start=1)
        ]
        limits = EngineOptions(
            num_threads=2,
            max_batch_size=len(important) + 1,
            max_seq_len=64,
            kv_cache_bytes=self.num_blocks * block_bytes(path),
            capacity_policy=CapacityPolicy.MAX_UTILIZATION,
            iteration_stats_size=1000,
        )
        return run(path, dataclasses.replace(limits, **options), [[*important, case]])


def _worlds(model: str) -> Iterator[World]:
    """Pools for a request with a prompt of 12 tokens: it holds a block for the first 16 tokens, and then a second one.

    Where layers see everything, the important request needs another block, which is not there, in step `step`. Where
    all layers have windows, nothing would be missing: two important ones need it at once, and again 16 steps later.
    """
    if model == "window":
        for length in range(1, 17):
            yield World(4, [(length, 35)] * 2)
    elif model == "some_windows":
        for length in range(10, 26):
            yield World(7, [(length, 24)])
        for length in range(29, 33):
            yield World(6, [(length, 6)])
    else:
        for step in range(2, 7):
            yield World(3, [(34 - step, step + 2)])
        for step in range(7, 22):
            yield World(4, [(34 - step, step + 2)])


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("model", MODELS)
def test_a_request_gives_the_same_bits_after_preemption_at_any_step(
    model: str, sampling: tuple[tuple[str, float | int], ...], tiny_engine: Callable[..., Path]
) -> None:
    path = MODELS[model].engine(tiny_engine)
    case = Case(tuple(range(100, 112)), 21, sampling)
    seen: set[int] = set()
    for world in _worlds(model):
        done = world.run(path, case, max_seq_len=48)
        seen.update(preemption.num_output_tokens for preemption in preemptions(done))
        assert done.outputs[-1] == alone(path, case)
    assert seen >= set(range(1, 21))


@pytest.mark.parametrize("enable_block_reuse", [True, False])
@pytest.mark.parametrize("model", MODELS)
def test_a_request_gives_the_same_bits_after_several_preemptions(
    model: str, enable_block_reuse: bool, tiny_engine: Callable[..., Path]
) -> None:
    """With reuse it finds what it had computed, unless others have taken the blocks; without, it computes all again."""
    path = MODELS[model].engine(tiny_engine)
    if model == "window":
        case = Case(tuple(range(100, 112)), 36, SAMPLED)
        world = World(4, [(12, 52)] * 2)  # grow out of a block at once, and again 16 steps later
        expected = [5, 18, 31]
    else:
        case = Case(tuple(range(100, 117)), 24, SAMPLED)
        # One, two and four grow out of their first block, and end: that leaves room for this one, and a block more for
        # each of them. It holds two.
        steps = [3, 8, 8, 13, 13, 13, 13]
        world = World(9 * MODELS[model].num_kv_groups, [(18 - step, step + 1) for step in steps])
        expected = [2, 5, 8]
    done = world.run(path, case, enable_block_reuse=enable_block_reuse)
    assert [preemption.num_output_tokens for preemption in preemptions(done)] == expected
    assert done.outputs[-1] == alone(path, case)


# The pool's blocks and, by the length of the important prompt, how much of this one's 40 tokens has been computed, in
# chunks of two or three, when the important request needs another block.
_BETWEEN_CHUNKS = {
    "window": (3, {6: 20, 14: 36, 15: 34}),
    "some_windows": (8, {14: 36, 15: 34, 22: 20, 33: 30, 34: 28, 35: 26, 37: 22}),
    "others": (4, {19: 26, 21: 22, 22: 20, 41: 14, 43: 10, 44: 8, 46: 4, 47: 2}),
}


@pytest.mark.parametrize("model", MODELS)
def test_a_prompt_gives_the_same_bits_after_preemption_between_its_chunks(
    model: str, tiny_engine: Callable[..., Path]
) -> None:
    path = MODELS[model].engine(tiny_engine)
    case = Case(tuple(range(100, 140)), 4, SAMPLED)
    num_blocks, num_computed = _BETWEEN_CHUNKS.get(model, _BETWEEN_CHUNKS["others"])
    for length, expected in num_computed.items():
        done = World(num_blocks, [(length, 64 - length)]).run(path, case, max_num_tokens=3)
        assert preemptions(done)[0] == Preemption(num_output_tokens=0, num_prompt_tokens=length + expected)
        assert done.outputs[-1] == alone(path, case)
