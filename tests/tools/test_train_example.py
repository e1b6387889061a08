"""tools/train_example: the split of the training text, and the checkpoint that ships. Nothing is trained here."""

from __future__ import annotations

import importlib.util
import json
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from tokenizers import Tokenizer

REPOSITORY = Path(__file__).resolve().parents[2]
CHECKPOINT = REPOSITORY / "examples" / "checkpoints" / "pydoc-llama"
MAX_CHECKPOINT_BYTES = 8_000_000


def load_tool(name: str) -> ModuleType:
    """Imports one file of tools/train_example under a name of its own: the folder is no package."""
    spec = importlib.util.spec_from_file_location(
        f"train_example_{name}", REPOSITORY / "tools" / "train_example" / f"{name}.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


corpus = load_tool("corpus")
recipe = load_tool("recipe")

LONG = "A paragraph that is long enough to count as shared text."


def read_json(name: str) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads((CHECKPOINT / name).read_text(encoding="utf-8"))
    return parsed


@cache
def shipped_tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))


class TestSplit:
    def test_holds_out_every_nth_topic_of_the_alphabet(self) -> None:
        split = corpus.split_topics({name: f"text {name}" for name in "gfedcba"}, hold_out_every=3)
        assert list(split.held_out) == ["a", "d", "g"]
        assert list(split.training) == ["b", "c", "e", "f"]

    def test_drops_a_topic_that_repeats_another(self) -> None:
        split = corpus.split_topics({"a": "held", "b": "one", "c": "one \n", "d": "two"}, hold_out_every=10)
        assert split.training == {"b": "one\n", "d": "two\n"}

    def test_removes_held_out_paragraphs_from_training_topics(self) -> None:
        topics = {"a": f"Title\n\n{LONG}", "b": f"First.\n\n{LONG}\n\nNote:\n\nLast.", "c": LONG}
        split = corpus.split_topics(topics, hold_out_every=10)
        assert split.training == {"b": "First.\n\nNote:\n\nLast.\n"}

    def test_short_paragraphs_may_be_on_both_sides(self) -> None:
        split = corpus.split_topics({"a": "Note:\n\nheld", "b": "Note:\n\ntrained"}, hold_out_every=2)
        assert split.training == {"b": "Note:\n\ntrained\n"}

    @pytest.mark.parametrize("hold_out_every", [1, 0, -3])
    def test_refuses_to_hold_everything_out(self, hold_out_every: int) -> None:
        with pytest.raises(ValueError, match=f"hold_out_every is {hold_out_every}"):
            corpus.split_topics({"a": "one", "b": "two"}, hold_out_every)

    def test_refuses_an_empty_side(self) -> None:
        with pytest.raises(ValueError, match="training side"):
            corpus.split_topics({"a": "one"}, hold_out_every=2)

    @given(
        st.dictionaries(st.text("abc", min_size=1), st.lists(st.sampled_from(["x", LONG, LONG[::-1], "y"]), min_size=1))
    )
    def test_no_long_paragraph_is_on_both_sides(self, topics: dict[str, list[str]]) -> None:
        both_sides = {"0": "always held out", "1": "always trained on"}
        split = corpus.split_topics(both_sides | {name: "\n\n".join(parts) for name, parts in topics.items()}, 2)
        held = {part for text in split.held_out.values() for part in corpus.paragraphs(text)}
        trained = {part for text in split.training.values() for part in corpus.paragraphs(text)}
        assert max(map(len, held & trained), default=0) < corpus.MIN_SHARED_CHARS

    def test_this_pythons_topics_split_with_text_on_both_sides(self) -> None:
        split = corpus.split_topics(corpus.python_topics(), recipe.Recipe.hold_out_every)
        held, trained = (sum(map(len, side.values())) for side in (split.held_out, split.training))
        assert 0.02 < held / (held + trained) < 0.3
        assert "import" in split.training


@given(st.text(alphabet=" \nab"))
def test_normalise_is_idempotent_and_ends_with_one_newline(text: str) -> None:
    once = corpus.normalise(text)
    assert corpus.normalise(once) == once
    assert once.endswith("\n")
    assert not once.endswith("\n\n")


class TestUnwrap:
    def test_joins_prose_and_the_text_of_a_list_item(self) -> None:
        first = "* " + "word " * 13 + "end"  # 70 columns: nothing more fits
        assert corpus.unwrap(f"{first}\n  and on.\n\nShort.\nKept.\n") == f"{first} and on.\n\nShort.\nKept.\n"

    def test_a_word_that_would_have_fitted_was_not_wrapped(self) -> None:
        first = "x" * 66
        assert corpus.unwrap(f"{first}\nabc d") == f"{first}\nabc d"  # 66 + 1 + 3 columns is the width
        assert corpus.unwrap(f"{first}\nabcd") == f"{first} abcd"

    @pytest.mark.parametrize(
        "lines",
        [
            ["x" * 69, "    indented"],
            ["| " + "cell " * 13 + "|", "| " + "cell " * 13 + "|"],
            ["A heading " + "x" * 56, "*" * 66],
            ['rule ::= "' + "x" * 56 + '"', "another ::= rule"],
            ["call(" + "x" * 60 + ")", ">>> call()"],
            ["x" * 71, "behind a line that prose cannot have"],
        ],
    )
    def test_leaves_code_tables_headings_and_grammar(self, lines: list[str]) -> None:
        assert corpus.unwrap("\n".join(lines)) == "\n".join(lines)

    def test_this_pythons_topics_keep_every_word(self) -> None:
        for text in map(corpus.normalise, corpus.python_topics().values()):
            unwrapped = corpus.unwrap(text)
            assert unwrapped.split() == text.split()
            assert unwrapped.count("\n\n") == text.count("\n\n")
            assert corpus.unwrap(unwrapped) == unwrapped


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 24}, "hidden_size 256 / num_heads 24"),
        ({"num_kv_heads": 3}, "not a multiple of num_kv_heads 3"),
        ({"window_lengths": (128, 512)}, r"\(128, 512\) is not max_tokens 1024"),
        ({"window_lengths": (96, 1024)}, r"tokens_per_step 4096 .* \[96\]"),
        ({"warmup_steps": 0}, "warmup_steps 0"),
        ({"dropout": 1.0}, "dropout 1.0"),
    ],
)
def test_recipe_refuses_what_cannot_be_trained(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe.Recipe(**change)


class TestShippedCheckpoint:
    def test_is_small_and_complete(self) -> None:
        files = {path.name: path.stat().st_size for path in CHECKPOINT.iterdir()}
        assert files.keys() == {
            "README.md",
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        }
        assert sum(files.values()) < MAX_CHECKPOINT_BYTES

    def test_config_is_the_recipes(self) -> None:
        written, made_by = read_json("config.json"), recipe.Recipe()
        expected = {
            "architectures": ["LlamaForCausalLM"],
            "dtype": "bfloat16",
            "head_dim": made_by.head_dim,
            "hidden_size": made_by.hidden_size,
            "intermediate_size": made_by.intermediate_size,
            "max_position_embeddings": made_by.max_tokens,
            "num_attention_heads": made_by.num_heads,
            "num_hidden_layers": made_by.num_layers,
            "num_key_value_heads": made_by.num_kv_heads,
            "tie_word_embeddings": True,
            "vocab_size": made_by.vocab_size,
        }
        assert {key: written[key] for key in expected} == expected

    def test_vocabulary_is_the_embeddings(self) -> None:
        with safe_open(CHECKPOINT / "model.safetensors", framework="numpy") as weights:
            embedding = weights.get_slice("model.embed_tokens.weight")
            assert embedding.get_dtype() == "BF16"
            assert embedding.get_shape() == [read_json("config.json")["vocab_size"], recipe.Recipe.hidden_size]
            assert "lm_head.weight" not in weights.keys()  # noqa: SIM118 - safe_open is not iterable
        assert shipped_tokenizer().get_vocab_size() == read_json("config.json")["vocab_size"]

    def test_every_file_names_the_same_special_tokens(self) -> None:
        named = read_json("tokenizer_config.json")
        ids = {key: shipped_tokenizer().token_to_id(named[f"{key}_token"]) for key in ("bos", "eos")}
        assert ids == {"bos": 0, "eos": 1}
        for name in ("config.json", "generation_config.json"):
            assert {key: read_json(name)[f"{key}_token_id"] for key in ids} == ids
        assert named["model_max_length"] == read_json("config.json")["max_position_embeddings"]

    @given(st.text())
    def test_tokenizer_puts_bos_first_and_loses_nothing(self, text: str) -> None:
        tokenizer = shipped_tokenizer()
        ids = tokenizer.encode(text).ids
        assert ids[0] == tokenizer.token_to_id("<|begin_of_text|>")
        assert tokenizer.decode(ids, skip_special_tokens=True) == text

    def test_card_tells_where_the_text_comes_from(self) -> None:
        card = (CHECKPOINT / "README.md").read_text(encoding="utf-8")
        assert "PSF License" in card
        assert f"{recipe.Recipe.num_steps} steps" in card, "README.md is not of the recipe in recipe.py: train again"
