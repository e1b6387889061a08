"""Fixtures of fake engines, which are built once in a session."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.tensorrt.fake_engine import build_fake_engine
from tests.runtime.tensorrt.nan_model import make_nan_checkpoint
from tests.runtime.tensorrt.worlds import VOCAB_SIZE, FakeEngine, Logits, World, lowered_logits, open_world
from tests.tiny_llama import GREEDY_MARGIN, reference_greedy

TinyLlama = Callable[..., Path]
NUM_CONTINUATIONS, NUM_GREEDY = 10, 8


@pytest.fixture(scope="session")
def fake_engine(tiny_llama: TinyLlama, tmp_path_factory: pytest.TempPathFactory) -> FakeEngine:
    """`fake_engine("float16", weights="separate")`: a read-only engine of a variant of tests/tiny_llama.py."""
    made: dict[tuple[Any, ...], Path] = {}

    def engine(variant: str, **options: Any) -> Path:
        key = (variant, *sorted(options.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp(f"{variant}-fake") / "engine"
            build_fake_engine(tiny_llama(variant), made[key], **options)
        return made[key]

    return engine


@pytest.fixture(scope="session")
def nan_engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The engine of nan_model.py."""
    folder = tmp_path_factory.mktemp("nan")
    build_fake_engine(make_nan_checkpoint(folder / "model"), folder / "engine")
    return folder / "engine"


@pytest.fixture(scope="session")
def reference(tiny_llama: TinyLlama) -> Callable[..., Logits]:
    """`reference("float16", "float16")(tokens)`: logits of the network by itself, of a variant in a dtype."""
    made: dict[tuple[str, str], Logits] = {}

    def logits(variant: str = "float16", dtype: str = "float16") -> Logits:
        if (variant, dtype) not in made:
            made[variant, dtype] = lowered_logits(tiny_llama(variant), dtype)
        return made[variant, dtype]

    return logits


@dataclass(frozen=True)
class Continuation:
    """A prompt, and the tokens that follow it, each with a logit that rounding does not make the second."""

    prompt: tuple[int, ...]
    tokens: list[int]


@pytest.fixture(scope="session")
def continuations(tiny_llama: TinyLlama) -> list[Continuation]:
    """Greedy ones of the float16 model by transformers, for prompts of 1 to 20 tokens."""
    model = tiny_llama("float16")
    random = np.random.default_rng(1)
    found: list[Continuation] = []
    while len(found) < NUM_CONTINUATIONS:
        prompt = tuple(int(token) for token in random.integers(2, VOCAB_SIZE, 1 + 2 * len(found)))
        tokens, margin = reference_greedy(model, prompt, NUM_GREEDY)
        if margin > GREEDY_MARGIN:
            found.append(Continuation(prompt, tokens))
    return found


@pytest.fixture
def world(fake_engine: FakeEngine) -> Iterator[World]:
    """The float16 model, whose roundings are small."""
    with open_world(fake_engine("float16")) as opened:
        yield opened
