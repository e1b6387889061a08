"""Tokens to text while they arrive."""

from __future__ import annotations

from collections.abc import Callable, Sequence

# Enough for decoders that treat the first token of a text specially (such as dropping its space).
_CONTEXT_TOKENS = 6
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class IncrementalDetokenizer:
    """Decodes an output piece by piece, so that the pieces joined are the text that follows the prompt.

    A token's text can depend on the token before it (spaces) and on those after it (a character whose bytes are
    spread over tokens). So a window is decoded twice, with and without the new tokens, and the difference is given
    out once it does not end within a character.

        ids      ... [ window: already given out | new ]
        decode       "    a prefix"                        -> what was given out
        decode       "    a prefix and more"               -> " and more"

    Args:
        decode: token ids to text, for any slice of a sequence.
        prompt_token_ids: what the output continues.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], prompt_token_ids: Sequence[int]) -> None:
        self._decode = decode
        self._ids = list(prompt_token_ids[-_CONTEXT_TOKENS:])
        self._given_end = len(self._ids)

    def push(self, token_id: int) -> str:
        """The text that is certain now and was not before; often "" in scripts whose characters need several tokens."""
        self._ids.append(token_id)
        return self._advance(final=False)

    def finish(self) -> str:
        """What is left, an incomplete character included, as U+FFFD."""
        return self._advance(final=True)

    def _advance(self, *, final: bool) -> str:
        given = self._decode(self._ids[: self._given_end])
        text = self._decode(self._ids)
        if len(text) <= len(given) or (text.endswith(_INCOMPLETE) and not final):
            return ""
        # The window moves on: the next difference is taken against the tokens given out now.
        self._ids = self._ids[self._given_end :]
        self._given_end = len(self._ids)
        return text[len(given) :]
