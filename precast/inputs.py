"""What ``generate`` accepts as prompts, brought into one form."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, TypedDict, cast


class _SharedKeys(TypedDict, total=False):
    cache_salt: str


class TextPrompt(_SharedKeys):
    """A text; with a cache_salt, cached blocks are shared only with prompts of the same salt."""

    prompt: str


class TokensPrompt(_SharedKeys):
    """Token ids, and as in TextPrompt."""

    prompt_token_ids: Sequence[int]


@dataclass(frozen=True)
class PreprocessedInputs:
    """A prompt that ``LLM.preprocess`` has tokenised, cut and checked.

    Attributes:
        prompt_token_ids: what the model will read.
        query_token_ids, multimodal_params, encoder_input_token_ids: None; models that need them are not supported.
        prompt: the text, where there was one.
        cache_salt: as in TextPrompt.
    """

    prompt_token_ids: list[int]
    query_token_ids: list[int] | None = None
    multimodal_params: None = None
    encoder_input_token_ids: list[int] | None = None
    prompt: str | None = None
    cache_salt: str | None = None


PromptInput: TypeAlias = "str | Sequence[int] | TextPrompt | TokensPrompt | PreprocessedInputs"
"""A text, its token ids, a dict that holds either, or what ``LLM.preprocess`` made of one of these."""


@dataclass(frozen=True)
class Prompt:
    """A text, token ids, or a text and what it has been tokenised to."""

    text: str | None = None
    token_ids: tuple[int, ...] | None = None
    cache_salt: str | None = None


def is_single(inputs: object) -> bool:
    """Whether ``inputs`` is one prompt: a str, a dict, or a list of ints (an empty list is no prompt at all)."""
    return isinstance(inputs, (str, Mapping, PreprocessedInputs)) or (
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
    return [_to_prompt(entry, f"prompt {i}") for i, entry in enumerate(cast(Sequence[PromptInput], inputs))]


def _is_sequence(value: object) -> bool:
    if isinstance(value, (bytes, bytearray, memoryview)):  # integers that nobody means as token ids
        return False
    # Arrays of NumPy are sequences in all but name.
    return isinstance(value, Sequence) or getattr(value, "ndim", 0) > 0


def _is_token_ids(values: Sequence[object]) -> bool:
    if len(values) > 0 and set(map(type, values)) == {int}:  # as nearly always, and quick for long prompts
        return True
    return len(values) > 0 and all(map(_is_integer, values))


def _is_integer(value: object) -> bool:
    # Every array has __index__, which works for one number only: a row of token ids is no integer.
    return hasattr(value, "__index__") and not isinstance(value, bool) and getattr(value, "ndim", 0) == 0


def _to_prompt(value: object, name: str) -> Prompt:
    if isinstance(value, PreprocessedInputs):
        return Prompt(value.prompt, tuple(value.prompt_token_ids), value.cache_salt)
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
    keys = set(value) - {"cache_salt"}
    salt = value.get("cache_salt")
    if salt is not None and not isinstance(salt, str):
        raise TypeError(f"{name} must have a str as cache_salt, got {salt!r:.100}")
    if keys == {"prompt"} and isinstance(value["prompt"], str):
        return replace(_to_prompt(value["prompt"], name), cache_salt=salt)
    if keys == {"prompt_token_ids"} and not isinstance(value["prompt_token_ids"], (str, Mapping, PreprocessedInputs)):
        return replace(_to_prompt(value["prompt_token_ids"], name), cache_salt=salt)
    raise ValueError(
        f'{name} must be {{"prompt": str}} or {{"prompt_token_ids": list of int}}, '
        f"got a dict with {sorted(map(str, value))}"
    )
