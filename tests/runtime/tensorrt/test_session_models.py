"""What a session computes is the model: logits and greedy tokens beside those of transformers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.tensorrt.worlds import LOGITS, TOKEN, Array, Chosen, FakeEngine, Piece, World, error, open_world
from tests.tiny_llama import GREEDY_MARGIN, PROMPTS, reference_greedy, reference_logits

TinyLlama = Callable[..., Path]

LONG = tuple((7 * i * i + 3 * i) % 318 + 2 for i in range(40))
"""More than a step and two blocks; behind the windows of all models."""
MODELS: list[tuple[str, dict[str, Any], float]] = [
    ("float16", {}, 0.004),
    ("float16", {"weights": "separate"}, 0.004),
    ("legacy_llama1", {}, 0.004),
    ("bfloat16", {}, 0.05),
    ("bfloat16_tied", {"weights": "separate"}, 0.05),
    ("mqa", {}, 0.05),
    ("attention_bias", {}, 0.05),
    ("mistral", {}, 0.05),
    ("qwen2_window", {"weights": "separate"}, 0.05),
    ("odd_vocab", {}, 0.05),
]
"""Variants, how they are built, and what rounding to 16 bits may change, of the largest logit; about half is seen."""


def _name(value: object) -> str | None:
    if isinstance(value, dict):
        return "separate" if value else "inside"
    return value if isinstance(value, str) else None


def chunks(tokens: Sequence[int], size: int) -> list[tuple[int, Sequence[int]]]:
    return [(start, tokens[start : start + size]) for start in range(0, len(tokens), size)]


def logits_of(world: World, tokens: Sequence[int], size: int) -> Array:
    """Of every position that a step has room for: four rows."""
    found = []
    for start, chunk in chunks(tokens, size):
        rows = range(max(0, len(chunk) - 4), len(chunk))
        piece = Piece(chunk, start, world.blocks(0, 1, 2)[: world.num_groups], dict.fromkeys(rows, LOGITS))
        found.append(world.run(world.step([piece])).logits)
    return np.concatenate(found)


@pytest.mark.parametrize(("variant", "options", "tolerance"), MODELS, ids=_name)
def test_logits(
    variant: str, options: dict[str, Any], tolerance: float, fake_engine: FakeEngine, tiny_llama: TinyLlama
) -> None:
    """In chunks that end within blocks and behind them, and token by token."""
    wanted = reference_logits(tiny_llama(variant), LONG)
    with open_world(fake_engine(variant, **options)) as world:
        for size in (32, 13, 4):
            rows = [row for start, chunk in chunks(LONG, size) for row in _last(start, len(chunk))]
            assert error(logits_of(world, LONG, size), wanted[rows]) < tolerance
        one_by_one = logits_of(world, LONG[:20], 1)
        assert error(one_by_one, wanted[:20]) < tolerance


def _last(start: int, count: int) -> range:
    return range(start + max(0, count - 4), start + count)


def generate(world: World, prompts: Sequence[Sequence[int]], steps: int, size: int) -> list[list[int]]:
    """Greedy tokens: prompts in chunks one after the other, then all together, described ahead of their tokens."""
    for i, prompt in enumerate(prompts):
        for start, chunk in chunks(prompt[:-1], size):
            piece = world.prompt(chunk, 3 * i, start)
            world.run(world.step([Piece(piece.tokens, start, world.blocks(3 * i, 3 * i + 1, 3 * i + 2))]))
    tokens: list[list[int]] = [[] for _ in prompts]
    before = world.step([_next(world, i, prompt[-1], len(prompt)) for i, prompt in enumerate(prompts)])
    world.session.enqueue(before)
    for number in range(1, steps + 1):
        after = None
        if number < steps:
            pieces = [_next(world, i, Chosen(before.id, i), len(each) + number) for i, each in enumerate(prompts)]
            after = world.step(pieces)
            world.session.enqueue(after)
        result = world.collect(before)
        assert result.token_ids is not None
        for each, token in zip(tokens, result.token_ids, strict=True):
            each.append(int(token))
        if after is not None:
            before = after
    return tokens


def _next(world: World, index: int, token: int | Chosen, length: int) -> Piece:
    blocks = world.blocks(3 * index, 3 * index + 1, 3 * index + 2)
    return Piece([token], length - 1, blocks, {0: TOKEN})


@pytest.mark.parametrize(("variant", "options"), [(variant, options) for variant, options, _ in MODELS], ids=_name)
def test_greedy_generation(
    variant: str, options: dict[str, Any], fake_engine: FakeEngine, tiny_llama: TinyLlama
) -> None:
    """Single and batched, in whole prompts and chunks: every token is transformers' first choice but for rounding."""
    model = tiny_llama(variant)
    with open_world(fake_engine(variant, **options)) as world:
        together = generate(world, PROMPTS, 12, 32)
        by_itself = [generate(world, [prompt], 12, 3)[0] for prompt in PROMPTS]
    is_exact = variant in ("float16", "legacy_llama1")
    for got in (together, by_itself):
        for prompt, tokens in zip(PROMPTS, got, strict=True):
            if is_exact:
                expected, margin = reference_greedy(model, prompt, 12)
                assert margin > GREEDY_MARGIN
                assert tokens == expected
            rows = reference_logits(model, [*prompt, *tokens])[len(prompt) - 1 : -1]
            regret = rows.max(axis=1) - rows[np.arange(12), tokens]
            assert regret.max() < 0.03 * np.abs(rows).max()
    assert len({tuple(each) for each in together}) == len(PROMPTS)
