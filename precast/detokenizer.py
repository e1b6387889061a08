"""Tokens to text while they arrive."""

from __future__ import annotations

from collections.abc import Callable, Sequence

# Enough for decoders that treat the first token of a text specially (such as dropping its space).
_CONTEXT_TOKENS = 6
# UTF-8 spreads one character over at most this many tokens.
_MAX_CHARACTER_TOKENS = 4
# Tokens that show nothing for so long are no character that is still incomplete.
_MAX_PENDING_TOKENS = 64
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
        self._ids = self._end_of_prompt(prompt_token_ids)
        self._given_end = len(self._ids)
        self._shown = ""  # of the new tokens, given out before the character that they end within

    def push(self, token_id: int) -> str:
        """The text that is certain now and was not before; often "" in scripts whose characters need several tokens."""
        self._ids.append(token_id)
        return self._advance(final=len(self._ids) - self._given_end >= _MAX_PENDING_TOKENS)

    def finish(self) -> str:
        """What is left, an incomplete character included, as U+FFFD."""
        return self._advance(final=True)

    def _end_of_prompt(self, ids: Sequence[int]) -> list[int]:
        """The window before the first output token; it does not begin within a character."""
        windows = [list(ids[-(_CONTEXT_TOKENS + i) :]) for i in range(_MAX_CHARACTER_TOKENS)]
        return min(windows, key=lambda window: self._decode_whole(window).count(_INCOMPLETE))

    def _advance(self, *, final: bool) -> str:
        text = self._decode(self._ids)
        if text.endswith(_INCOMPLETE) and not final:
            return self._part_before_character(text)
        piece = self._new_part(text).removeprefix(self._shown)
        shown, self._shown = self._shown, ""
        if piece or shown:
            # The window moves on: the next difference is taken against the tokens given out now.
            self._ids = self._ids[self._given_end :]
            self._given_end = len(self._ids)
        elif final:
            del self._ids[self._given_end :]  # a long run of tokens without a text
        return piece

    def _part_before_character(self, text: str) -> str:
        """One token may hold the end of a word and the first byte of a character: the word need not wait."""
        given = self._decode(self._ids[: self._given_end])
        before = text.rstrip(_INCOMPLETE)
        if not before.startswith(given + self._shown):
            return ""
        piece = before[len(given) + len(self._shown) :]
        self._shown += piece
        return piece

    def _new_part(self, text: str) -> str:
        given_ids = self._ids[: self._given_end]
        given = self._decode(given_ids)
        if not text.startswith(given):
            # Where the prompt ended within a character, that is whole now and belongs to the output.
            given = self._decode_whole(given_ids)
        if text.startswith(given):
            return text[len(given) :]
        # Bytes that are no UTF-8 can spoil characters before them, which were given out already.
        return self._decode(self._ids[self._given_end :])

    def _decode_whole(self, ids: Sequence[int]) -> str:
        """The text of ``ids`` without a character at their end that is still incomplete."""
        text = self._decode(ids)
        for count in range(1, min(_MAX_CHARACTER_TOKENS, len(ids))):
            if not text.endswith(_INCOMPLETE):
                break
            text = self._decode(ids[:-count])
        return text
