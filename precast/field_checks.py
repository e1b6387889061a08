"""Checks of dataclass fields: ValueError names field, rule and value, TypeError field, kind and value."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import SupportsIndex, cast

MAX_INT = 2**31 - 1
MAX_FLOAT32 = 3.4e38  # the engine computes in float32, where more would be infinite


def to_integer(name: str, value: object, minimum: int, maximum: int = MAX_INT, *, kind: str = "an integer") -> int:
    # NumPy's integers come out of tokenizers and arrays, and ctypes takes none; bool is an int that nobody means.
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise TypeError(f"{name} must be {kind}, got {value!r}")
    if not minimum <= operator.index(value) <= maximum:
        raise ValueError(f"{name} must be in [{minimum}, {maximum}], got {value}")
    return operator.index(value)


def to_number(name: str, value: object, rule: str, holds: Callable[[float], bool]) -> float:
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not holds(float(value)):
        raise ValueError(f"{name} {rule}, got {value}")
    return float(value)


def to_bool(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {value!r}")
    return value


def to_token_ids(name: str, value: object) -> tuple[int, ...]:
    """Token ids; whether the vocabulary has them is not known here."""
    kind = "a sequence of integers or None"
    if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        raise TypeError(f"{name} must be {kind}, got {value!r}")
    return tuple(to_integer(name, token_id, 0, kind=kind) for token_id in cast(Iterable[object], value))


def to_strings(name: str, value: object) -> tuple[str, ...]:
    """One string, or several, none of them empty."""
    values = (value,) if isinstance(value, str) else value
    if isinstance(values, (bytes, dict)) or not hasattr(values, "__iter__"):
        raise TypeError(f"{name} must be a string, a sequence of strings or None, got {value!r}")
    checked = tuple(cast(Iterable[object], values))
    for each in checked:
        if not isinstance(each, str):
            raise TypeError(f"{name} must be a string, a sequence of strings or None, got {each!r}")
        if not each:
            raise ValueError(f"{name} must not hold an empty string, got {value!r}")
    return cast("tuple[str, ...]", checked)
