"""JSON objects from files that others wrote: parsed strictly, and read with types checked.

A `JsonObject` knows where it came from, so a wrong value is named with its file and key. As in
transformers, a value of null means the same as an absent key.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from precast.checkpoints.errors import ConfigError

T = TypeVar("T")


class DuplicateKeyError(ValueError):
    """A JSON object has a key twice."""


def parse_json_object(data: bytes) -> dict[str, Any]:
    """Parse UTF-8 JSON. Raises ValueError if it is malformed, is not an object, or has a duplicate key."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"it holds {_kind(value)}, not an object")
    return value


def read_json_file(path: Path) -> dict[str, Any]:
    """Read the JSON object in `path`. Raises ConfigError, also if there is no such file."""
    try:
        return parse_json_object(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from error


@dataclass(frozen=True)
class JsonObject:
    """A JSON object and its origin. `source` names it in messages: a path, with a key for a nested one.

    Every getter raises ConfigError for a value of another type. For a key that is absent or null,
    `optional_...` returns None; the others return their default, or raise if none is given.
    """

    values: Mapping[str, Any]
    source: str

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def error(self, key: str, expected: str) -> ConfigError:
        """The error for a value that is not what was expected."""
        return ConfigError(f"{self.source}: {key!r} must be {expected}, not {self.values.get(key)!r}")

    def optional_integer(self, key: str) -> int | None:
        value = self.values.get(key)
        if isinstance(value, float) and value.is_integer():  # files exist that write 8192.0
            return int(value)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise self.error(key, "an integer")
        return value

    def positive_integer(self, key: str, default: int | None = None) -> int:
        """An integer of at least 1."""
        value = self._or_default(key, self.optional_integer(key), default)
        if value < 1:
            raise self.error(key, "at least 1")
        return value

    def optional_number(self, key: str) -> float | None:
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
            raise self.error(key, "a finite number")
        return float(value)

    def number(self, key: str, default: float | None = None) -> float:
        return self._or_default(key, self.optional_number(key), default)

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of numbers, which must be there."""
        values = self._or_default(key, self.values.get(key), None)
        if not isinstance(values, list) or not all(
            type(item) in (int, float) and math.isfinite(item) for item in values
        ):
            raise self.error(key, "a list of finite numbers")
        return tuple(float(item) for item in values)

    def positive_integers(self, key: str) -> tuple[int, ...]:
        """A list of integers of at least 1, which must be there."""
        values = self._or_default(key, self.values.get(key), None)
        if not isinstance(values, list) or not all(type(item) is int and item >= 1 for item in values):
            raise self.error(key, "a list of integers of at least 1")
        return tuple(values)

    def boolean(self, key: str, default: bool | None = None) -> bool:
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.error(key, "true or false")
        return self._or_default(key, value, default)

    def optional_string(self, key: str) -> str | None:
        value = self.values.get(key)
        if value is not None and not isinstance(value, str):
            raise self.error(key, "a string")
        return value

    def string(self, key: str, default: str | None = None) -> str:
        return self._or_default(key, self.optional_string(key), default)

    def token_ids(self, key: str) -> tuple[int, ...]:
        """One id or a list of ids; empty where absent."""
        value = self.values.get(key)
        if value is None:
            return ()
        ids = value if isinstance(value, list) else [value]
        if not all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in ids):
            raise self.error(key, "a token id or a list of token ids")
        return tuple(ids)

    def optional_object(self, key: str) -> "JsonObject | None":
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error(key, "an object")
        return JsonObject(value, f"{self.source}: {key}")

    def _or_default(self, key: str, value: T | None, default: T | None) -> T:
        value = default if value is None else value
        if value is None:
            raise ConfigError(f"{self.source}: {key!r} is missing")
        return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise DuplicateKeyError(f"the key {key!r} occurs twice")
        result[key] = value
    return result


def _kind(value: object) -> str:
    kinds = {list: "a list", str: "a string", type(None): "null", bool: "a boolean"}
    return kinds.get(type(value), "a number")
