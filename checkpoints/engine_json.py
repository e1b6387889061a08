"""A strict reader of JSON, for files that nobody vouches for: the Python twin of runtime/native/src/json.h.

Refused beyond RFC 8259's own rules: duplicate member names, integers outside int64, numbers that are infinite or vanish
as a double, halves of surrogate pairs, more than 32 levels, more than 16 MiB.
"""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from precast.checkpoints.engine_errors import CorruptEngineError, quote

MAX_JSON_BYTES = 16 << 20
MAX_JSON_DEPTH = 32

T = TypeVar("T")


class _RefusedError(ValueError):
    """Raised inside the decoder's hooks, which do not know where they are."""


def parse_json(data: bytes, source: str) -> object:
    """The value of one document, all of `data`; `source` names it in messages. Raises CorruptEngineError."""
    if len(data) > MAX_JSON_BYTES:
        raise CorruptEngineError(f"{source}: {len(data)} bytes, the limit is {MAX_JSON_BYTES}")
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_distinct_members,
            parse_int=_parse_integer,
            parse_float=_parse_float,
            parse_constant=_refuse_constant,
        )
        _check_depth_and_text(value, depth=0)
    except json.JSONDecodeError as error:
        raise CorruptEngineError(f"{source}:{error.lineno}:{error.colno}: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise CorruptEngineError(f"{source}: byte {error.start} is not UTF-8") from error
    except RecursionError as error:
        raise CorruptEngineError(f"{source}: nested deeper than {MAX_JSON_DEPTH} levels") from error
    except _RefusedError as error:
        raise CorruptEngineError(f"{source}: {error}") from error
    return value


def _distinct_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members:
            raise _RefusedError(f"the member {quote(name)} appears twice")
        members[name] = value
    return members


def _parse_integer(text: str) -> int:
    value = int(text) if len(text) <= 20 else 1 << 63  # int() of very long digits is slow, and limited by Python
    if not -(1 << 63) <= value < 1 << 63:
        raise _RefusedError(f"{quote(text)} is an integer that does not fit into 64 bits")
    return value


def _parse_float(text: str) -> float:
    value = float(text)
    vanished = value == 0.0 and re.match(r"-?[0.]*[1-9]", text) is not None
    if math.isinf(value) or vanished:
        raise _RefusedError(f"{quote(text)} is a number that a double cannot hold")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise _RefusedError(f"{name} is not JSON")


def _check_depth_and_text(value: object, depth: int) -> None:
    """`depth`: how many arrays and objects the value is inside of."""
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise _RefusedError("half of a surrogate pair stands alone") from None
    elif isinstance(value, (list, dict)):
        if depth == MAX_JSON_DEPTH:
            raise _RefusedError(f"nested deeper than {MAX_JSON_DEPTH} levels")
        for element in value if isinstance(value, list) else [*value.keys(), *value.values()]:
            _check_depth_and_text(element, depth + 1)


@dataclass(frozen=True)
class JsonCursor:
    """A value and its place in the document, so that a complaint can name it: "source: model.vocab_size must be an
    integer, got a string". Every accessor raises CorruptEngineError.
    """

    value: object
    source: str
    path: str = ""

    def at(self, name: str) -> "JsonCursor":
        """A member that must exist."""
        member = self.find(name)
        if member is None:
            raise CorruptEngineError(f"{self.source}: {self._member_path(name)} is missing")
        return member

    def find(self, name: str) -> "JsonCursor | None":
        """A member that may be absent."""
        members = self._get(dict, "an object")
        return JsonCursor(members[name], self.source, self._member_path(name)) if name in members else None

    def members(self) -> "list[tuple[str, JsonCursor]]":
        return [(name, self.at(name)) for name in self._get(dict, "an object")]

    def elements(self) -> "list[JsonCursor]":
        elements = self._get(list, "an array")
        return [JsonCursor(v, self.source, f"{self.path}[{i}]") for i, v in enumerate(elements)]

    def integer(self) -> int:
        return self._get(int, "an integer")

    def integer_or_none(self) -> int | None:
        return None if self.value is None else self.integer()

    def string(self) -> str:
        return self._get(str, "a string")

    def string_or_none(self) -> str | None:
        return None if self.value is None else self.string()

    def boolean(self) -> bool:
        return self._get(bool, "a boolean")

    def error(self, requirement: str) -> CorruptEngineError:
        return CorruptEngineError(f"{self.source}: {self.path or 'the document'} must {requirement}")

    def create(self, make: Callable[..., T], **fields: object) -> T:
        """`make(**fields)`; its ValueError, "field must ...", becomes a complaint about this value's member."""
        try:
            return make(**fields)
        except ValueError as error:
            separator = "." if self.path else ""
            raise CorruptEngineError(f"{self.source}: {self.path}{separator}{error}") from error

    def _get(self, kind: type[T], wanted: str) -> T:
        # bool is a subclass of int, in Python but not in JSON
        if isinstance(self.value, kind) and isinstance(self.value, bool) == (kind is bool):
            return self.value
        raise self.error(f"be {wanted}, got {_kind_of(self.value)}")

    def _member_path(self, name: str) -> str:
        if re.fullmatch(r"[A-Za-z0-9_]+", name) is None:
            return f"{self.path}[{quote(name)}]"
        return f"{self.path}.{name}" if self.path else name


def _kind_of(value: object) -> str:
    kinds = {
        type(None): "null",
        bool: "a boolean",
        int: "an integer",
        float: "a number that is not an integer",
        str: "a string",
        list: "an array",
        dict: "an object",
    }
    return kinds[type(value)]
