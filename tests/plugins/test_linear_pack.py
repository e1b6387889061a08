"""Packing: where each number lies, what is rounded, and that everything comes back."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from precast.plugins import SUPPORTED_LAYOUTS, layouts
from precast.plugins.linear import pack as packing
from precast.plugins.linear.pack import pack, pack_into, packed_size, unpack

LAYOUTS = tuple(layouts.WEIGHT_LAYOUTS)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
SOURCE_DTYPES = (np.dtype(np.float32), BFLOAT16, np.dtype(np.float16))


def numbers(seed: int, rows: int, width: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(dtype)


def stored(layout: str, weights: NDArray[Any]) -> NDArray[np.float32]:
    """The values that the layout can hold."""
    dtype = layouts.weight_layout(layout).dtype
    return weights.astype(BFLOAT16 if dtype == "bfloat16" else dtype).astype(np.float32)


def test_layouts_are_listed() -> None:
    assert set(layouts.CPU_WEIGHT_LAYOUTS) <= set(SUPPORTED_LAYOUTS)
    assert set(LAYOUTS) - set(layouts.CPU_WEIGHT_LAYOUTS) == {"dense.bf16/1", "dense.f16/1"}


def test_an_fp32_tile_holds_16_outputs_side_by_side() -> None:
    weights = numbers(0, 20, 3, np.dtype(np.float32))
    tiles_TKN = pack("x16k1.f32/1", [weights]).view(np.float32).reshape(2, 3, 16)
    for n, k in np.ndindex(20, 3):
        assert tiles_TKN[n // 16, k, n % 16] == weights[n, k]
    assert not tiles_TKN[1, :, 4:].any()


def test_a_bf16_tile_holds_16_pairs_of_inputs_side_by_side() -> None:
    weights = numbers(0, 20, 5, BFLOAT16)
    tiles_TPN2 = pack("x16k2.bf16/1", [weights]).view(BFLOAT16).reshape(2, 3, 16, 2)
    for n, k in np.ndindex(20, 5):
        assert tiles_TPN2[n // 16, k // 2, n % 16, k % 2] == weights[n, k]
    assert not tiles_TPN2[1, :, 4:].astype(np.float32).any()
    assert not tiles_TPN2[:, 2, :, 1].astype(np.float32).any()


@given(
    seed=st.integers(0, 2**32 - 1),
    layout=st.sampled_from(LAYOUTS),
    parts=st.lists(st.tuples(st.integers(0, 40), st.sampled_from(SOURCE_DTYPES)), min_size=1, max_size=4),
    in_features=st.integers(1, 50),
)
def test_parts_of_any_size_and_dtype_come_back_below_one_another(
    seed: int, layout: str, parts: list[tuple[int, np.dtype[Any]]], in_features: int
) -> None:
    blocks = [numbers(seed + i, rows, in_features, dtype) for i, (rows, dtype) in enumerate(parts)]
    expected = np.concatenate([stored(layout, block) for block in blocks])
    if not len(expected):
        with pytest.raises(ValueError, match="out_features=0"):
            pack(layout, blocks)
        return
    packed = pack(layout, blocks)
    assert packed.dtype == np.uint8
    assert packed.shape == (packed_size(layout, len(expected), in_features),)
    np.testing.assert_array_equal(unpack(layout, packed, len(expected), in_features), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_slices_change_nothing(monkeypatch: pytest.MonkeyPatch, layout: str) -> None:
    parts = [numbers(1, 100, 33, np.dtype(np.float32)), numbers(2, 77, 33, np.dtype(np.float16))]
    whole = pack(layout, parts)
    for slice_bytes in (1, 5000):
        monkeypatch.setattr(packing, "_SLICE_BYTES", slice_bytes)
        np.testing.assert_array_equal(pack(layout, parts), whole)


def test_fp32_is_rounded_to_bf16_with_ties_to_even() -> None:
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0xBF808000, 0x7F7FFFFF, 0xFF800000], np.uint32)
    packed = pack("x16k2.bf16/1", [bits.view(np.float32).reshape(1, -1)])
    expected = np.array([0x3F80, 0x3F82, 0x3F81, 0xBF80, 0x7F80, 0xFF80], np.uint16)
    rounded = unpack("x16k2.bf16/1", packed, 1, len(bits)).view(np.uint32) >> 16
    np.testing.assert_array_equal(rounded[0], expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_byte_of_a_given_array_is_written_and_none_behind_it(layout: str) -> None:
    weights = numbers(3, 21, 7, np.dtype(np.float32))
    size_bytes = packed_size(layout, 21, 7)
    memory = np.full(size_bytes + 8, 0xAA, np.uint8)
    pack_into(layout, [weights], memory[4:-4])
    np.testing.assert_array_equal(memory[4:-4], pack(layout, [weights]))
    assert (memory[:4] == 0xAA).all()
    assert (memory[-4:] == 0xAA).all()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "at least one row block"),
        ([np.zeros(4, np.float32)], r"not float32 \[4\]"),
        ([np.zeros((4, 4), np.float64)], r"not float64 \[4, 4\]"),
        ([np.zeros((4, 4), np.float32), np.zeros((4, 5), np.float32)], "same in_features, not 4, 5"),
        ([np.zeros((4, 0), np.float32)], "in_features=0"),
    ],
)
def test_what_is_no_matrix_is_refused(parts: list[NDArray[Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack("x16k1.f32/1", parts)


def test_an_unknown_layout_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"unknown weight layout 'x16k1.f32/9'; this version knows x16k1.f32/1, "):
        packed_size("x16k1.f32/9", 1, 1)


@pytest.mark.parametrize("out", [np.empty(4, np.uint8), np.empty(64, np.int8), np.empty(128, np.uint8)[::2]])
def test_an_array_that_does_not_fit_is_refused(out: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match=r"packing \[1, 1\] as x16k1.f32/1 needs a contiguous uint8 array of 64 bytes"):
        pack_into("x16k1.f32/1", [np.zeros((1, 1), np.float32)], out)


def test_a_packed_tensor_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[1, 1\] packed as x16k1.f32/1 has 64 bytes, not 63"):
        unpack("x16k1.f32/1", np.empty(63, np.uint8), 1, 1)
