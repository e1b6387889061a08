"""Rounding to nearest, in every format."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from precast.builder.errors import BuildError
from precast.builder.quantize import round_to_nearest
from precast.builder.quantize.formats import FORMATS, QuantFormat, quant_format
from precast.builder.quantize.round_to_nearest import (
    Scales,
    dequantize,
    find_scales,
    pack_values,
    round_values,
)

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
SOURCES = (np.dtype(np.float32), BFLOAT16, np.dtype(np.float16))

formats = st.sampled_from(tuple(FORMATS.values()))


def matrix(seed: int, rows: int, columns: int, dtype: np.dtype[Any] = SOURCES[0]) -> NDArray[Any]:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(dtype)


def quantized(chosen: QuantFormat, w: NDArray[Any], dtype: np.dtype[Any] = BFLOAT16) -> tuple[NDArray[Any], Scales]:
    scales = find_scales(chosen, w, dtype)
    return round_values(chosen, w, scales), scales


def representable(chosen: QuantFormat) -> NDArray[np.float64]:
    """Every value of the format, ascending."""
    if chosen.name == "int8":
        return np.arange(-127, 128, dtype=np.float64)
    if chosen.name == "int4":
        return np.arange(-8, 8, dtype=np.float64)
    codes = np.arange(1 << chosen.value_bits, dtype=np.uint8).view(chosen.value_dtype).astype(np.float64)
    return np.unique(codes[np.isfinite(codes)])


@given(
    seed=st.integers(0, 2**32 - 1),
    chosen=formats,
    rows=st.integers(1, 5),
    groups=st.integers(1, 3),
    source=st.sampled_from(SOURCES),
    dtype=st.sampled_from((BFLOAT16, np.dtype(np.float16))),
)
def test_every_value_is_the_nearest_that_the_format_has(
    seed: int, chosen: QuantFormat, rows: int, groups: int, source: np.dtype[Any], dtype: np.dtype[Any]
) -> None:
    w = matrix(seed, rows, groups * (chosen.group_size or 24), source)
    values, scales = quantized(chosen, w, dtype)
    assert values.shape == w.shape
    assert values.dtype == chosen.value_dtype
    per_weight = np.repeat(scales.effective(), w.shape[1] // scales.groups.shape[1], axis=1).astype(np.float64)
    exact = w.astype(np.float64) / per_weight
    least = np.abs(exact[..., None] - representable(chosen)).min(axis=-1)
    # Where two are equally near, either is right; the division is rounded to float32 before.
    np.testing.assert_array_less(np.abs(exact - values.astype(np.float64)), least + 1e-4)


@given(seed=st.integers(0, 2**32 - 1), chosen=formats)
def test_scales_follow_from_the_greatest_magnitude_of_their_group(seed: int, chosen: QuantFormat) -> None:
    size = chosen.group_size or 48
    w = matrix(seed, 3, 2 * size)
    scales = find_scales(chosen, w, BFLOAT16)
    groups = w.reshape(3, -1, chosen.group_size or 2 * size)
    wanted = np.abs(groups).max(axis=2) / chosen.largest
    assert scales.groups.shape == wanted.shape
    tolerance = 2**-4 if chosen.fp8_scales else 2**-8  # half a unit in the last place of e4m3, of bfloat16
    np.testing.assert_allclose(scales.effective(), wanted, rtol=tolerance)


@pytest.mark.parametrize("chosen", FORMATS.values(), ids=FORMATS)
def test_what_can_be_stored_comes_back_exactly(chosen: QuantFormat) -> None:
    size = chosen.group_size or 64
    values = representable(chosen)
    w = np.random.default_rng(1).choice(values, (4, 2 * size)).astype(np.float32)
    w[:, ::size] = -chosen.largest  # every group has the greatest magnitude, so every scale is 1 or the matrix's
    got = dequantize(chosen, *quantized(chosen, w))
    np.testing.assert_allclose(got, w, rtol=1e-6)


@pytest.mark.parametrize(("name", "error"), [("int8", 0.008), ("int4", 0.115), ("fp8", 0.028), ("nvfp4", 0.105)])
def test_the_error_on_normal_weights(name: str, error: float) -> None:
    """Relative root mean square errors; a wrong scale or a truncation instead of a rounding is beyond them."""
    w = matrix(2, 64, 1024)
    got = dequantize(quant_format(name), *quantized(quant_format(name), w))
    measured = float(np.sqrt(np.mean((got - w) ** 2) / np.mean(w**2)))
    assert 0.7 * error < measured < error


@pytest.mark.parametrize("chosen", FORMATS.values(), ids=FORMATS)
def test_zeros_stay_zeros(chosen: QuantFormat) -> None:
    w = np.zeros((2, 256), np.float32)
    w[1, :16] = 3.0
    values, scales = quantized(chosen, w)
    assert np.isfinite(scales.effective()).all()
    assert (scales.effective() > 0).all()
    got = dequantize(chosen, values, scales)
    assert not got[0].any()
    np.testing.assert_allclose(got[1], w[1], rtol=0.13)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("chosen", FORMATS.values(), ids=FORMATS)
def test_an_infinity_or_nan_is_refused(chosen: QuantFormat, bad: float) -> None:
    w = matrix(3, 5, 256)
    w[3, 200] = bad
    with pytest.raises(BuildError, match=rf"^row 3 of the matrix holds an infinity or NaN, which {chosen.name} cannot"):
        find_scales(chosen, w, BFLOAT16)


@pytest.mark.parametrize(("name", "greatest"), [("int8", 1e7), ("int4", 6e5), ("fp8", 4e7)])
def test_a_scale_that_float16_cannot_hold_is_refused(name: str, greatest: float) -> None:
    w = matrix(6, 2, 128)
    w[1, 5] = greatest
    with pytest.raises(BuildError, match=r"^a scale of .* is needed, which float16 cannot hold: build with dtype bf"):
        find_scales(quant_format(name), w, np.dtype(np.float16))
    assert np.isfinite(find_scales(quant_format(name), w, BFLOAT16).effective()).all()


@pytest.mark.parametrize("chosen", FORMATS.values(), ids=FORMATS)
def test_slices_change_nothing(chosen: QuantFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    w = matrix(4, 37, 256)
    values, scales = quantized(chosen, w)
    monkeypatch.setattr(round_to_nearest, "_SLICE_ELEMENTS", 700)
    again, same = quantized(chosen, w)
    np.testing.assert_array_equal(values.view(np.uint8), again.view(np.uint8))
    np.testing.assert_array_equal(scales.groups.view(np.uint8), same.groups.view(np.uint8))


def test_of_4_bit_values_the_even_column_is_in_the_low_half() -> None:
    int4 = quant_format("int4")
    values = np.array([[-8, 7, 1, -1]], dtype=ml_dtypes.int4)
    assert pack_values(int4, values).tolist() == [[0x78, 0xF1]]
    nvfp4 = quant_format("nvfp4")
    values = np.array([[0.5, 6.0, -0.5, 1.0]], dtype=ml_dtypes.float4_e2m1fn)
    assert pack_values(nvfp4, values).tolist() == [[0x71, 0x29]]


def test_columns_that_are_no_whole_groups_are_refused() -> None:
    with pytest.raises(BuildError, match=r"^200 in_features cannot be cut into groups of 128, which int4 has$"):
        find_scales(quant_format("int4"), matrix(5, 2, 200), BFLOAT16)


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(BuildError, match=r"^quantization 'int3' is unknown; known: int8, int4, fp8, nvfp4$"):
        quant_format("int3")
