"""RmsNorm's device kernel against its reference, in Triton's interpreter.

Not collected by itself: test_rms_norm_device.py runs this file in a process whose TRITON_INTERPRET is 1.
"""

from typing import Any

import numpy as np
import pytest

from precast.plugins.rms_norm.device import launches
from precast.plugins.rms_norm.device.launches import kernel_specs, run_rms_norm
from precast.plugins.rms_norm.device.op_fields import RmsNormFields
from precast.plugins.rms_norm.reference import rms_norm
from precast.plugins.rms_norm.schema import RmsNormAttributes
from tests.plugins.device_ops import DTYPES, Array, assert_same_bits, assert_within, do_last_row_only, run_op

SCALE_ERROR = 8 * 2.0**-24
"""Relative to the reference's scale: half the error of a sum in another order, and roundings of fp32 on either side."""
EPSILON = 1e-5


def run(x: Array, weight: Array, residual: Array | None, epsilon: float = EPSILON) -> tuple[Array, Array]:
    """y and sum of the device; without a residual sum is x."""
    dtype = next(name for name, type_ in DTYPES.items() if x.dtype == type_)
    op_fields = RmsNormFields(x.shape[1], epsilon, int(residual is not None), dtype)
    y, total = np.full_like(x, np.nan), np.full_like(x, np.nan)
    if residual is None:
        run_op(run_rms_norm, op_fields, kernel_specs(op_fields), [x, weight], [y])
        return y, x
    run_op(run_rms_norm, op_fields, kernel_specs(op_fields), [x, weight, residual], [y, total])
    return y, total


def add(x: Array, residual: Array | None) -> Array:
    """The op's sum."""
    return x if residual is None else (x.astype(np.float32) + residual.astype(np.float32)).astype(x.dtype)


def weighted(normed_TH: Array, weight: Array, dtype: Any) -> Array:
    """The last two roundings."""
    rounded_TH = normed_TH.astype(dtype).astype(np.float32)
    result: Array = (rounded_TH * weight.astype(np.float32)).astype(dtype)
    return result


def check(x: Array, weight: Array, residual: Array | None, is_exact: bool = False) -> None:
    """The device's sum is right to the bit; y is what follows from the reference's scale, but for SCALE_ERROR.

    With `is_exact` sums of squares are exact in fp32 in any order, and y has the bits that the schema's fp32 has.
    """
    y, total = run(x, weight, residual)
    expected = add(x, residual)
    assert_same_bits(total, expected)
    total_TH = expected.astype(np.float32)
    if is_exact:
        squares_T1 = np.square(total_TH.astype(np.float64)).sum(axis=1, keepdims=True)
        assert squares_T1.max() < 2**24
        scale_T1 = 1 / np.sqrt(squares_T1.astype(np.float32) / np.float32(x.shape[1]) + np.float32(EPSILON))
        assert_same_bits(y, weighted(total_TH * scale_T1, weight, x.dtype))
    else:
        normed, _ = rms_norm(total_TH, np.ones(x.shape[1], np.float32), RmsNormAttributes(EPSILON))
        low, high = (normed.astype(np.float64) * factor for factor in (1 - SCALE_ERROR, 1 + SCALE_ERROR))
        bounds = [weighted(bound.astype(np.float32), weight, x.dtype) for bound in (low, high)]
        assert_within(y, *bounds)


def random_case(dtype: str, rows: int, features: int, seed: int = 0) -> tuple[Array, Array, Array]:
    """x, weight and residual; magnitudes of rows differ by 2^20."""
    generator = np.random.default_rng(seed)
    scale = 2.0 ** generator.integers(-10, 11, (rows, 1))
    x, residual = (scale * generator.standard_normal((2, rows, features))).astype(DTYPES[dtype])
    return x, generator.standard_normal(features).astype(DTYPES[dtype]), residual


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_residual", [False, True])
@pytest.mark.parametrize(
    ("rows", "features"), [(1, 1), (3, 7), (2, 96), (1, 129), (40, 64), (2, 2880), (1, 8192), (1, 16383), (1, 16384)]
)
def test_it_is_the_reference_with_roundings(dtype: str, has_residual: bool, rows: int, features: int) -> None:
    x, weight, residual = random_case(dtype, rows, features)
    check(x, weight, residual if has_residual else None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_residual", [False, True])
def test_where_sums_of_squares_are_exact_it_has_the_references_bits(dtype: str, has_residual: bool) -> None:
    generator = np.random.default_rng(1)
    x = generator.integers(-15, 16, (50, 300)).astype(DTYPES[dtype])
    residual = generator.integers(-15, 16, (50, 300)).astype(DTYPES[dtype])
    weight = generator.standard_normal(300).astype(DTYPES[dtype])
    check(x, weight, residual if has_residual else None, is_exact=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_rounded_sum_is_what_is_normed(dtype: str) -> None:
    """Two elements of 2^k + 1/2 unit: their sum is rounded to even, and the norm is that of the rounded."""
    size = 2.0**8 if dtype == "bfloat16" else 2.0**11
    x = np.array([[size, 1.0]], DTYPES[dtype])
    residual = np.array([[1.0, 0.0]], DTYPES[dtype])  # size + 1 is halfway between two numbers
    weight = np.ones(2, DTYPES[dtype])
    y, total = run(x, weight, residual, 0.0)
    assert total.astype(np.float32).tolist() == [[size, 1.0]]
    assert_same_bits(y, run(total, weight, None, 0.0)[0])
    check(x, weight, residual, is_exact=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_rounding_shows(dtype: str) -> None:
    """In what is compared above: without one of the roundings many bits would differ."""
    x, weight, residual = random_case(dtype, 4, 500)
    total = x.astype(np.float32) + residual.astype(np.float32)
    ones, op = np.ones(500, np.float32), RmsNormAttributes(EPSILON)
    right = weighted(rms_norm(add(x, residual).astype(np.float32), ones, op)[0], weight, x.dtype)
    unrounded_sum = weighted(rms_norm(total, ones, op)[0], weight, x.dtype)
    unrounded_norm = rms_norm(add(x, residual).astype(np.float32), weight.astype(np.float32), op)[0].astype(x.dtype)
    for other in (unrounded_sum, unrounded_norm):
        assert (other.view(np.uint16) != right.view(np.uint16)).mean() > 0.05


def test_huge_and_tiny_values() -> None:
    """Rows of bfloat16 whose sum of squares is just below and beyond fp32, and is tiny, 0 for fp32, and 0."""
    x = np.array([[8e18] * 4, [1e19] * 4, [1e38] * 4, [2e-18] * 4, [1e-30] * 4, [0.0] * 4], DTYPES["bfloat16"])
    y = run(x, np.ones(4, x.dtype), None, epsilon=1e-36)[0].astype(np.float32)
    assert y[0].tolist() == [1.0] * 4
    assert not y[1:3].any()  # the scale is 0
    np.testing.assert_allclose(y[3], 2e-18 / np.sqrt(4e-36 + 1e-36), rtol=2.0**-7)
    np.testing.assert_allclose(y[4], 1e-12, rtol=2.0**-7)
    assert not y[5].any()
    zeros = run(x[5:], np.ones(4, x.dtype), None, epsilon=0.0)[0].astype(np.float32)
    assert np.isnan(zeros).all()  # 0 * (1 / 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_stay_in_their_row(dtype: str, value: float) -> None:
    x, weight, residual = random_case(dtype, 3, 20)
    y, total = run(x, weight, residual)
    x[1, 5] = value
    spoilt, spoilt_total = (array.astype(np.float32) for array in run(x, weight, residual))
    np.testing.assert_array_equal(spoilt_total[1, 5], np.float32(value))
    assert np.isnan(spoilt[1, 5])
    if np.isnan(value):
        assert np.isnan(spoilt[1]).all()
    else:
        assert not np.delete(spoilt[1], 5).any()
    np.testing.assert_array_equal(spoilt[::2], y[::2].astype(np.float32))
    np.testing.assert_array_equal(np.delete(spoilt_total, 25), np.delete(total.astype(np.float32), 25))


def test_half_overflows_where_the_sum_does() -> None:
    x = np.array([[65504.0, 1.0]], np.float16)
    y, total = run(x, np.ones(2, np.float16), x)
    assert total.tolist() == [[np.inf, 2.0]]
    assert np.isnan(y[0, 0])
    assert y[0, 1] == 0


def test_a_rows_bits_do_not_depend_on_other_rows() -> None:
    x, weight, residual = random_case("bfloat16", 9, 77)
    y, _ = run(x, weight, residual)
    for row in (0, 4, 8):
        assert_same_bits(run(x[row : row + 1].copy(), weight, residual[row : row + 1].copy())[0], y[row : row + 1])


def test_a_row_beyond_2_to_the_31(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that nobody touches is not there."""
    rows, features = 2**18 + 1, 2**13
    x, residual, y, total = (np.zeros((rows, features), np.float16) for _ in range(4))
    last, weight, last_residual = random_case("float16", 1, features)
    x[-1], residual[-1] = last, last_residual
    expected, expected_total = run(last, weight, last_residual)
    op_fields = RmsNormFields(features, EPSILON, 1, "float16")
    do_last_row_only(monkeypatch, launches, rows)
    run_op(run_rms_norm, op_fields, kernel_specs(op_fields), [x, weight, residual], [y, total])
    assert_same_bits(y[-1:], expected)
    assert_same_bits(total[-1:], expected_total)
