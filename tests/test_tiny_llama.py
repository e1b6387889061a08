"""The checkpoints that other tests stand on keep what they promise."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny_llama import EOS_TOKEN_ID, GREEDY_MARGIN, PROMPTS, VARIANTS, VOCAB_SIZE, reference_greedy


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_margins_are_healthy(variant: str, tiny_llama: Callable[..., Path]) -> None:
    for prompt in PROMPTS:
        tokens, margin = reference_greedy(tiny_llama(variant), prompt)
        assert margin >= GREEDY_MARGIN
        assert EOS_TOKEN_ID not in tokens
        assert len(set(tokens)) >= 3


def test_bfloat16_keeps_the_greedy_tokens(tiny_llama: Callable[..., Path]) -> None:
    for prompt in PROMPTS:
        exact, _ = reference_greedy(tiny_llama("gqa"), prompt)
        rounded, _ = reference_greedy(tiny_llama("gqa"), prompt, dtype="bfloat16")
        assert rounded == exact


def test_the_tokenizer_covers_every_byte_and_the_vocabulary(tiny_llama: Callable[..., Path]) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tiny_llama("gqa") / "tokenizer.json"))
    text = "def f(x):\n\treturn 'é 東 🙂' \x00\x7f"
    ids = tokenizer.encode(text).ids
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    assert ids[0] == tokenizer.token_to_id("<|begin_of_text|>")
    assert tokenizer.decode(ids) == text


def test_legacy_variants_are_in_the_old_dialect(tiny_llama: Callable[..., Path]) -> None:
    config = json.loads((tiny_llama("legacy_llama3") / "config.json").read_text())
    assert {"rope_theta", "rope_scaling", "torch_dtype"} <= config.keys()
    assert config.keys().isdisjoint({"rope_parameters", "dtype"})
    llama1 = json.loads((tiny_llama("legacy_llama1") / "config.json").read_text())
    assert llama1.keys().isdisjoint({"num_key_value_heads", "head_dim"})
