"""Text to token ids and back, from the files in an engine's ``tokenizer`` folder."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tokenizers


class TokenizerError(ValueError):
    """There is no tokenizer that Precast can read."""


class Tokenizer:
    """A ``tokenizer.json``, read by the ``tokenizers`` library on a thread of its own: reading a large vocabulary
    takes as long as loading an engine.

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
        self._backend: tokenizers.Tokenizer | Exception | None = None
        self._token_texts: dict[int, str] = {}
        # No daemon: a process that ends while the library is reading would tear the thread apart inside it.
        self._reader = threading.Thread(target=self._read, name="precast-tokenizer")
        self._reader.start()

    def _read(self) -> None:
        try:
            import tokenizers

            backend = tokenizers.Tokenizer.from_file(str(self._path))
        except Exception as error:  # noqa: BLE001  the library raises nothing more precise, and `backend` raises it again
            self._backend = error
            return
        # Some files say how their trainer cut and filled up its texts, which is no business of prompts.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend

    def wait(self) -> None:
        """Returns when the file has been read.

        Raises:
            TokenizerError: the file is damaged, or needs a newer library.
        """
        self._reader.join()
        if isinstance(self._backend, Exception):
            raise TokenizerError(f"{self._path} cannot be read: {self._backend}") from self._backend

    @property
    def backend(self) -> tokenizers.Tokenizer:
        """The object of the ``tokenizers`` library, for what this class does not offer. Raises as :meth:`wait`."""
        if self._backend is None or isinstance(self._backend, Exception):  # else it has been read, and every token asks
            self.wait()
        assert self._backend is not None
        assert not isinstance(self._backend, Exception)
        return self._backend

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included. The model's may be larger: it is often padded."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Raises UnicodeEncodeError (a ValueError) for a text with lone surrogates."""
        try:
            return self.backend.encode(text, add_special_tokens=add_special_tokens).ids
        except TypeError:
            text.encode()  # names the surrogate, where the library only says that this is no str
            raise

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self.backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def decode_token(self, token_id: int) -> str:
        """The text of one token alone, special ones included; U+FFFD where it is part of a character."""
        text = self._token_texts.get(token_id)
        if text is None:
            text = self._token_texts[token_id] = self.backend.decode([token_id], skip_special_tokens=False)
        return text


def read_generation_config(folder: Path) -> dict[str, Any]:
    """The checkpoint's ``generation_config.json``; empty where it has none.

    Raises:
        TokenizerError: it is not a JSON object.
    """
    path = folder / "generation_config.json"
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise TokenizerError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise TokenizerError(f"{path} must hold a JSON object, not {type(config).__name__}")
    return config
