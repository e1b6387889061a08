"""The runtime on a tiny engine of each family, beside Hugging Face: prompts in chunks, greedy tokens in batches."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from precast.runtime import Engine, EngineOptions, EngineRequest, TokenEvent
from precast.runtime.model import Model
from tests.tiny_llama import GREEDY_STEPS, PROMPTS, reference_greedy, reference_logits

VARIANTS = (
    "gqa",
    "rope_dynamic",
    "rope_longrope",
    "mistral",
    "mistral_nemo",
    "qwen2",
    "qwen2_window",
    "qwen3",
    "qwen3_window",
)
TOKENS = tuple(int(token) for token in np.random.default_rng(0).integers(2, 320, 75))


@pytest.mark.parametrize("max_num_tokens", [5, 16, 75])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_hugging_faces_whatever_the_chunks(
    variant: str, max_num_tokens: int, tiny_llama: Callable[..., Path], tiny_engine: Callable[..., Path]
) -> None:
    """Where all layers have a window, the pool holds less than the sequence: its blocks are used again."""
    expected = reference_logits(tiny_llama(variant, "float32"), TOKENS)
    options = EngineOptions(max_batch_size=1, max_num_tokens=max_num_tokens, max_seq_len=len(TOKENS))
    with Model(tiny_engine(variant, "float32"), options) as model:
        logits = model.logits(TOKENS)
        num_blocks = model.info["num_blocks"]
    assert np.abs(logits - expected).max() / np.abs(expected).max() < 1e-4
    if variant == "mistral":
        assert num_blocks == {5: 2, 16: 3, 75: 5}[max_num_tokens]
    if variant == "qwen2_window":
        assert num_blocks == {5: 5 + 2, 16: 5 + 3, 75: 5 + 5}[max_num_tokens]


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_tokens_equal_hugging_faces(
    variant: str, tiny_llama: Callable[..., Path], tiny_engine: Callable[..., Path]
) -> None:
    requests = [EngineRequest(prompt, max_tokens=GREEDY_STEPS, temperature=0, ignore_eos=True) for prompt in PROMPTS]
    with Engine(tiny_engine(variant, "float32"), EngineOptions(num_threads=2, max_num_tokens=64)) as engine:
        for prompt, handle in zip(PROMPTS, engine.submit(requests), strict=True):
            tokens = [event.token_id for event in handle.events() if isinstance(event, TokenEvent)]
            assert tokens == reference_greedy(tiny_llama(variant, "float32"), prompt)[0]
