"""The tokenizer of an engine, and what is said when its files are missing or damaged."""

from pathlib import Path

import pytest

from precast.tokenizer import Tokenizer, TokenizerError, read_generation_config
from tests.precast.tiny_tokenizers import byte_level


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_text_to_ids_and_back(folder: Path) -> None:
    tokenizer = Tokenizer(folder)
    ids = tokenizer.encode("the cat 🙂")
    assert ids == byte_level().encode("the cat 🙂").ids
    assert tokenizer.decode(ids) == "the cat 🙂"
    assert tokenizer.vocab_size == byte_level().get_vocab_size()


def test_cutting_and_filling_up_that_a_file_asks_for_is_not_done(folder: Path) -> None:
    """Trainers leave such settings in the file; a prompt would be cut, or end in padding, without a word."""
    backend = byte_level()
    backend.enable_truncation(2)
    backend.enable_padding(length=16)
    backend.save(str(folder / "tokenizer.json"))
    assert Tokenizer(folder).encode("the cat sat") == byte_level().encode("the cat sat").ids


def test_no_tokenizer_json(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=f"^{tmp_path} has no tokenizer.json: convert .* skip_tokenizer_init=True"):
        Tokenizer(tmp_path)


def test_a_damaged_tokenizer_json(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    tokenizer = Tokenizer(tmp_path)
    for _ in range(2):
        with pytest.raises(TokenizerError, match=f"^{tmp_path}/tokenizer.json cannot be read: "):
            tokenizer.encode("the")


def test_generation_config(tmp_path: Path) -> None:
    assert read_generation_config(tmp_path) == {}
    path = tmp_path / "generation_config.json"
    path.write_text('{"temperature": 0.5}')
    assert read_generation_config(tmp_path) == {"temperature": 0.5}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON: "),
        (b"\xff", "is not JSON: "),
        (b"[]", "must hold a JSON object, not list"),
    ],
)
def test_a_damaged_generation_config(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "generation_config.json"
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match=f"^{path} {message}"):
        read_generation_config(tmp_path)
