"""Fixtures that several tests of the front door use."""

import pytest

from precast.tokenizer import Tokenizer
from tests.precast.tiny_tokenizers import byte_level


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The tiny tokenizer whose tokens are bytes, as the front door reads it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_level().save(str(folder / "tokenizer.json"))
    return Tokenizer(folder)
