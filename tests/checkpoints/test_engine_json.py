import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precast.checkpoints.engine_errors import CorruptEngineError
from precast.checkpoints.engine_json import MAX_JSON_BYTES, JsonCursor, parse_json

INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
DOCUMENTS = st.recursive(
    st.none() | st.booleans() | INT64 | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


@given(DOCUMENTS, st.booleans())
def test_what_json_writes_is_read_back(document: Any, ensure_ascii: bool) -> None:
    assert parse_json(json.dumps(document, ensure_ascii=ensure_ascii).encode(), "doc") == document


@given(st.binary(max_size=40) | st.text('{}[]",:\\u0d18e+-.tfn \n', max_size=40).map(str.encode))
def test_any_bytes_are_read_or_refused_under_their_name(data: bytes) -> None:
    refusal = ""
    try:
        parse_json(data, "doc")
    except CorruptEngineError as error:
        refusal = str(error)
    assert refusal == "" or refusal.startswith("doc:")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "doc:1:1: Expecting value"),
        (b'{"a": 1,\n "b" 2}', "doc:2:6: Expecting ':' delimiter"),
        (b"[1] 2", "doc:1:5: Extra data"),
        (b"\xef\xbb\xbf{}", "doc:1:1: Unexpected UTF-8 BOM (decode using utf-8-sig)"),
        (b'{"a": 1, "a": 2}', 'doc: the member "a" appears twice'),
        (b'{"x": {"a": 1, "b": 1, "a": 2}}', 'doc: the member "a" appears twice'),
        (b'"\xff"', "doc: byte 1 is not UTF-8"),
        (b'"\xed\xa0\x80"', "doc: byte 1 is not UTF-8"),
        (b'"\\ud800"', "doc: half of a surrogate pair stands alone"),
        (b'{"\\udc00": 1}', "doc: half of a surrogate pair stands alone"),
        (b"NaN", "doc: NaN is not JSON"),
        (b"-Infinity", "doc: -Infinity is not JSON"),
        (b"9223372036854775808", 'doc: "9223372036854775808" is an integer that does not fit into 64 bits'),
        (b"-9223372036854775809", 'doc: "-9223372036854775809" is an integer that does not fit into 64 bits'),
        (b"1" * 5000, f'doc: "{"1" * 120}..." is an integer that does not fit into 64 bits'),
        (b"1e999", 'doc: "1e999" is a number that a double cannot hold'),
        (b"-0.01e-999", 'doc: "-0.01e-999" is a number that a double cannot hold'),
        (b"[" * 33 + b"]" * 33, "doc: nested deeper than 32 levels"),
        (b"[" * 100_000, "doc: nested deeper than 32 levels"),
        (b" " * (MAX_JSON_BYTES + 1), "doc: 16777217 bytes, the limit is 16777216"),
    ],
    ids=lambda value: repr(value[:24]),
)
def test_refusals(data: bytes, message: str) -> None:
    with pytest.raises(CorruptEngineError) as caught:
        parse_json(data, "doc")
    assert str(caught.value) == message


def test_limits_are_inclusive() -> None:
    assert parse_json(b"[" * 32 + b"]" * 32, "doc") is not None
    assert parse_json(b"[9223372036854775807, -9223372036854775808]", "doc") == [(1 << 63) - 1, -(1 << 63)]
    assert parse_json(b"0.0e-999", "doc") == 0.0
    assert math.isclose(float(str(parse_json(b"1e308", "doc"))), 1e308)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("[]", "doc: the document must be an object, got an array"),
        ("{}", "doc: model is missing"),
        ('{"model": 1}', "doc: model must be an object, got an integer"),
        ('{"model": {}}', "doc: model.size is missing"),
        ('{"model": {"size": "1"}}', "doc: model.size must be an integer, got a string"),
        ('{"model": {"size": true}}', "doc: model.size must be an integer, got a boolean"),
        ('{"model": {"size": 1.0}}', "doc: model.size must be an integer, got a number that is not an integer"),
        ('{"model": {"size": null}}', "doc: model.size must be an integer, got null"),
    ],
)
def test_a_cursor_says_where(document: str, message: str) -> None:
    with pytest.raises(CorruptEngineError) as caught:
        JsonCursor(parse_json(document.encode(), "doc"), "doc").at("model").at("size").integer()
    assert str(caught.value) == message


def test_paths_of_a_cursor() -> None:
    root = JsonCursor({"ranks": [{"a b": True}]}, "doc")
    value = root.at("ranks").elements()[0].members()[0][1]
    assert value.path == 'ranks[0]["a b"]'
    assert value.boolean() is True
    assert root.find("absent") is None
