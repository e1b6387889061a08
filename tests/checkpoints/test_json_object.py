"""Typed reading of JSON that others wrote."""

from pathlib import Path
from typing import Any

import pytest

from precast.checkpoints.errors import ConfigError
from precast.checkpoints.json_object import JsonObject, parse_json_object, read_json_file


def test_values_defaults_and_nulls() -> None:
    config = JsonObject(
        {"i": 3, "f": 1e-5, "whole": 8192.0, "s": "x", "b": True, "null": None, "o": {"k": 1}}, "c.json"
    )
    assert config.positive_integer("i") == 3
    assert config.positive_integer("whole") == 8192
    assert config.positive_integer("null", 7) == 7
    assert config.number("f") == 1e-5
    assert config.number("i") == 3.0
    assert config.string("s") == "x"
    assert config.string("absent", "default") == "default"
    assert config.boolean("b", False) is True
    assert config.boolean("null", True) is True
    assert config.optional_integer("absent") is None
    assert config.optional_object("null") is None
    assert "i" in config
    assert "null" not in config
    nested = config.optional_object("o")
    assert nested is not None
    assert (nested.positive_integer("k"), nested.source) == (1, "c.json: o")


@pytest.mark.parametrize(
    ("getter", "value", "expected"),
    [
        ("positive_integer", "64", "an integer"),
        ("positive_integer", True, "an integer"),
        ("positive_integer", 1.5, "an integer"),
        ("positive_integer", 0, "at least 1"),
        ("number", "1e-5", "a finite number"),
        ("number", False, "a finite number"),
        ("number", float("nan"), "a finite number"),
        ("string", 3, "a string"),
        ("token_ids", "2", "a token id or a list of token ids"),
        ("token_ids", [1, -2], "a token id or a list of token ids"),
        ("optional_object", [], "an object"),
    ],
)
def test_a_wrong_type_is_named_with_its_key_and_value(getter: str, value: Any, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        getattr(JsonObject({"key": value}, "dir/config.json"), getter)("key")
    assert str(caught.value) == f"dir/config.json: 'key' must be {expected}, not {value!r}"


def test_a_boolean_must_be_one() -> None:
    with pytest.raises(ConfigError, match="'key' must be true or false, not 1"):
        JsonObject({"key": 1}, "c.json").boolean("key", False)


@pytest.mark.parametrize("getter", ["positive_integer", "number", "string"])
def test_a_missing_value_without_default_is_named(getter: str) -> None:
    with pytest.raises(ConfigError, match=r"c\.json: 'key' is missing"):
        getattr(JsonObject({"key": None}, "c.json"), getter)("key")


def test_token_ids_are_one_or_many() -> None:
    config = JsonObject({"one": 2, "many": [2, 3]}, "c.json")
    assert [config.token_ids(key) for key in ("one", "many", "absent")] == [(2,), (2, 3), ()]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"[]", "it holds a list, not an object"),
        (b"null", "it holds null, not an object"),
        (b"3", "it holds a number, not an object"),
        (b'{"a": 1, "a": 2}', "the key 'a' occurs twice"),
        (b'{"a": {"b": 1, "b": 2}}', "the key 'b' occurs twice"),
        (b'{"a": "\xff"}', "can't decode byte"),
    ],
)
def test_malformed_json_is_refused(data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        parse_json_object(data)
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(ConfigError, match=rf"x\.json: not valid JSON: .*{message}"):
        read_json_file(tmp_path / "x.json")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.json: cannot be read: No such file"):
        read_json_file(tmp_path / "absent.json")
