"""Text to token ids and back, from the files in an engine's ``tokenizer`` folder."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tokenizers


class TokenizerError(ValueError):
    """There is no tokenizer that Precast can read."""


class Tokenizer:
    """A ``tokenizer.json``, read by the ``tokenizers`` library when it is first used.

    Args:
        folder: holds ``tokenizer.json``.

    Raises:
        TokenizerError: it does not; the message says how to make one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / "tokenizer.json"
        if not self._path.is_file():
            raise TokenizerError(
                f"{folder} has no tokenizer.json: convert the model's tokenizer once with "
                "transformers.AutoTokenizer.from_pretrained(...).save_pretrained(...), "
                "or pass skip_tokenizer_init=True and prompts of token ids"
            )

    @functools.cached_property
    def backend(self) -> tokenizers.Tokenizer:
        """The object of the ``tokenizers`` library, for what this class does not offer."""
        import tokenizers

        try:
            return tokenizers.Tokenizer.from_file(str(self._path))
        except Exception as error:
            raise TokenizerError(f"{self._path} is not a tokenizer that can be read: {error}") from error

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included. The model's may be larger: it is often padded."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return self.backend.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self.backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)


def read_generation_config(folder: Path) -> dict[str, Any]:
    """The checkpoint's ``generation_config.json``; empty where it has none."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise TokenizerError(f"{path} is not JSON: {error}") from error
    return config if isinstance(config, dict) else {}
