import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from precast.plugins import SUPPORTED_OPS
from precast.plugins.layouts import WEIGHT_LAYOUTS
from precast.plugins.linear import schema
from precast.plugins.linear.pack import pack
from precast.plugins.linear.reference import linear
from precast.plugins.linear.schema import LinearAttributes


def test_the_op_is_listed() -> None:
    assert f"{schema.DOMAIN}.{schema.NAME}/{schema.VERSION}" in SUPPORTED_OPS


@pytest.mark.parametrize(
    ("in_features", "out_features", "layout", "message"),
    [
        (0, 4, "x16k1.f32/1", "in_features is 0 and out_features 4"),
        (4, -1, "x16k1.f32/1", "out_features -1"),
        (4, 4, "kv16.f32/1", "unknown weight layout 'kv16.f32/1'"),
    ],
)
def test_attributes_that_make_no_matrix_are_refused(
    in_features: int, out_features: int, layout: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        LinearAttributes(in_features, out_features, layout)


def test_the_size_of_the_weight() -> None:
    assert LinearAttributes(5, 17, "x16k1.f32/1").weight_size_bytes == 2 * 5 * 64
    assert LinearAttributes(5, 17, "x16k2.bf16/1").weight_size_bytes == 2 * 3 * 64


@given(
    seed=st.integers(0, 2**32 - 1),
    layout=st.sampled_from(tuple(WEIGHT_LAYOUTS)),
    rows=st.integers(0, 3),
    in_features=st.integers(1, 40),
    out_features=st.integers(1, 40),
    has_bias=st.booleans(),
)
def test_it_is_torchs_linear_in_fp64(
    seed: int, layout: str, rows: int, in_features: int, out_features: int, has_bias: bool
) -> None:
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((rows, in_features)).astype(np.float32)
    weight = generator.standard_normal((out_features, in_features)).astype(np.float32)
    bias = generator.standard_normal(out_features).astype(np.float32) if has_bias else None
    attributes = LinearAttributes(in_features, out_features, layout)
    y = linear(x, pack(layout, [weight]), attributes, bias)

    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[
        WEIGHT_LAYOUTS[layout].dtype
    ]
    expected = torch.nn.functional.linear(
        torch.from_numpy(x).to(dtype).double(),
        torch.from_numpy(weight).to(dtype).double(),
        None if bias is None else torch.from_numpy(bias).double(),
    )
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, expected.numpy(), rtol=1e-6, atol=1e-12)


def test_matrices_with_more_outputs_than_are_unpacked_at_once() -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((2, 5)).astype(np.float32)
    weight = generator.standard_normal((2100, 5)).astype(ml_dtypes.bfloat16)
    y = linear(x, pack("x16k2.bf16/1", [weight]), LinearAttributes(5, 2100, "x16k2.bf16/1"))
    expected = x.astype(ml_dtypes.bfloat16).astype(np.float64) @ weight.astype(np.float64).T
    np.testing.assert_array_equal(y, expected.astype(np.float32))


def test_what_does_not_fit_is_refused() -> None:
    attributes = LinearAttributes(4, 4, "x16k1.f32/1")
    with pytest.raises(ValueError, match=r"x is \[2, 3\]; its rows must have 4 elements"):
        linear(np.zeros((2, 3), np.float32), np.zeros(256, np.uint8), attributes)
    for size_bytes in (255, 257):
        with pytest.raises(ValueError, match=f"the weight has {size_bytes} bytes, not 256"):
            linear(np.zeros((2, 4), np.float32), np.zeros(size_bytes, np.uint8), attributes)
