import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from precast.plugins import SUPPORTED_OPS
from precast.plugins.embedding import schema
from precast.plugins.embedding.reference import embedding
from precast.plugins.embedding.schema import EmbeddingAttributes
from precast.plugins.layouts import WEIGHT_LAYOUTS
from precast.plugins.linear.pack import pack


def test_the_op_is_listed() -> None:
    assert f"{schema.DOMAIN}.{schema.NAME}/{schema.VERSION}" in SUPPORTED_OPS


@pytest.mark.parametrize(("rows", "features"), [(0, 4), (4, 0)])
def test_attributes_that_make_no_table_are_refused(rows: int, features: int) -> None:
    with pytest.raises(ValueError, match=f"rows is {rows} and features {features}"):
        EmbeddingAttributes(rows, features, "x16k1.f32/1")
    with pytest.raises(ValueError, match="unknown weight layout"):
        EmbeddingAttributes(1, 1, "x16k1.f32")


@given(
    layout=st.sampled_from(tuple(WEIGHT_LAYOUTS)),
    rows=st.integers(1, 50),
    features=st.integers(1, 20),
    draws=st.lists(st.integers(0, 2**16), max_size=8),
)
def test_rows_come_back_exactly(layout: str, rows: int, features: int, draws: list[int]) -> None:
    weights = np.random.default_rng(rows).standard_normal((rows, features)).astype(ml_dtypes.bfloat16)
    token_ids = np.array(draws, np.int32) % np.int32(rows)
    y = embedding(token_ids, pack(layout, [weights]), EmbeddingAttributes(rows, features, layout))
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, weights[token_ids].astype(np.float32))


def test_slices_add_up_to_the_table() -> None:
    weights = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
    token_ids = np.arange(40, dtype=np.int32)
    total = np.zeros((40, 6), np.float32)
    for start in (0, 32):  # the second one padded, as a rank's is
        rows = np.concatenate([weights, np.zeros((24, 6), np.float32)])[start : start + 32]
        attributes = EmbeddingAttributes(32, 6, "x16k1.f32/1", row_start=start, is_slice=1)
        total += embedding(token_ids, pack("x16k1.f32/1", [rows]), attributes)
    np.testing.assert_array_equal(total, weights)


@pytest.mark.parametrize(("row_start", "is_slice"), [(-1, 0), (0, 2)])
def test_a_slice_that_is_none_is_refused(row_start: int, is_slice: int) -> None:
    with pytest.raises(ValueError, match=f"row_start is {row_start}, .* and is_slice {is_slice}, which must be 0 or 1"):
        EmbeddingAttributes(5, 3, "x16k1.f32/1", row_start, is_slice)


@pytest.mark.parametrize("token_id", [-1, 5, 2**31 - 1])
def test_an_id_outside_the_table_is_an_error(token_id: int) -> None:
    table = pack("x16k1.f32/1", [np.zeros((5, 3), np.float32)])
    with pytest.raises(IndexError, match=f"token id {token_id} is outside the table of 5 rows"):
        embedding(np.array([0, token_id], np.int32), table, EmbeddingAttributes(5, 3, "x16k1.f32/1"))


def test_a_table_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="the table has 64 bytes, not 192"):
        embedding(np.array([0], np.int32), np.zeros(64, np.uint8), EmbeddingAttributes(5, 3, "x16k1.f32/1"))
