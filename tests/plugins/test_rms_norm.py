import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from precast.plugins import SUPPORTED_OPS
from precast.plugins.rms_norm import schema
from precast.plugins.rms_norm.reference import rms_norm
from precast.plugins.rms_norm.schema import RmsNormAttributes


def test_the_op_is_listed() -> None:
    assert f"{schema.DOMAIN}.{schema.NAME}/{schema.VERSION}" in SUPPORTED_OPS


@pytest.mark.parametrize("epsilon", [-1e-6, float("nan"), float("inf")])
def test_an_epsilon_that_makes_no_sense_is_refused(epsilon: float) -> None:
    with pytest.raises(ValueError, match="epsilon is"):
        RmsNormAttributes(epsilon)


def test_it_is_torchs_rms_norm() -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((5, 48)).astype(np.float32)
    weight = generator.standard_normal(48).astype(np.float32)
    expected = torch.nn.functional.rms_norm(torch.from_numpy(x), (48,), torch.from_numpy(weight), 1e-5)
    y, total = rms_norm(x, weight, RmsNormAttributes(1e-5))
    np.testing.assert_allclose(y, expected.numpy(), rtol=1e-6)
    assert total is x


@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 4), hidden=st.integers(1, 100))
def test_a_residual_is_added_first_and_comes_out_as_the_sum(seed: int, rows: int, hidden: int) -> None:
    generator = np.random.default_rng(seed)
    x, residual = generator.standard_normal((2, rows, hidden)).astype(np.float32)
    weight = generator.standard_normal(hidden).astype(np.float32)
    y, total = rms_norm(x, weight, RmsNormAttributes(1e-6), residual)
    np.testing.assert_array_equal(total, x + residual)
    np.testing.assert_array_equal(y, rms_norm(x + residual, weight, RmsNormAttributes(1e-6))[0])
    assert y.dtype == total.dtype == np.float32
