"""What ``generate`` accepts as prompts, brought into one form."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypedDict, cast


class TextPrompt(TypedDict):
    prompt: str


class TokensPrompt(TypedDict):
    prompt_token_ids: Sequence[int]


PromptInput: TypeAlias = "str | Sequence[int] | TextPrompt | TokensPrompt"
"""A text, its token ids, or a dict that holds either."""


@dataclass(frozen=True)
class Prompt:
    """Either a text or token ids."""

    text: str | None = None
    token_ids: tuple[int, ...] | None = None


def is_single(inputs: object) -> bool:
    """Whether ``inputs`` is one prompt: a str, a dict, or a list of ints (an empty list is no prompt at all)."""
    return isinstance(inputs, (str, Mapping)) or (
        _is_sequence(inputs) and _is_token_ids(cast(Sequence[object], inputs))
    )


def to_prompts(inputs: PromptInput | Sequence[PromptInput]) -> list[Prompt]:
    """One Prompt for each.

    Raises:
        TypeError: something that is no prompt; the message says which entry.
        ValueError: a dict with unknown or missing keys.
    """
    if is_single(inputs):
        return [_to_prompt(inputs, "the prompt")]
    if not _is_sequence(inputs):
        raise TypeError(f"inputs must be a str, token ids, a dict or a list of these, got {type(inputs).__name__}")
    return [_to_prompt(entry, f"prompt {i}") for i, entry in enumerate(inputs)]


def _is_sequence(value: object) -> bool:
    if isinstance(value, (bytes, bytearray, memoryview)):  # integers that nobody means as token ids
        return False
    # Arrays of NumPy are sequences in all but name.
    return isinstance(value, Sequence) or getattr(value, "ndim", 0) > 0


def _is_token_ids(values: Sequence[object]) -> bool:
    return len(values) > 0 and all(map(_is_integer, values))


def _is_integer(value: object) -> bool:
    # Every array has __index__, which works for one number only: a row of token ids is no integer.
    return hasattr(value, "__index__") and not isinstance(value, bool) and getattr(value, "ndim", 0) == 0


def _to_prompt(value: object, name: str) -> Prompt:
    if isinstance(value, Mapping):
        return _from_dict(value, name)
    if isinstance(value, str):
        if not value:
            raise ValueError(f"{name} is empty")
        return Prompt(text=value)
    if _is_sequence(value):
        token_ids = cast(Sequence[int], value)
        if len(token_ids) == 0:
            raise ValueError(f"{name} is empty")
        if _is_token_ids(token_ids):
            return Prompt(token_ids=tuple(map(operator.index, token_ids)))
    raise TypeError(f"{name} must be a str, token ids or a dict, got {value!r:.100}")


def _from_dict(value: Mapping[str, object], name: str) -> Prompt:
    keys = set(value)
    if keys == {"prompt"} and isinstance(value["prompt"], str):
        return _to_prompt(value["prompt"], name)
    if keys == {"prompt_token_ids"} and not isinstance(value["prompt_token_ids"], (str, Mapping)):
        return _to_prompt(value["prompt_token_ids"], name)
    raise ValueError(
        f'{name} must be {{"prompt": str}} or {{"prompt_token_ids": list of int}}, '
        f"got a dict with {sorted(map(str, keys))}"
    )
