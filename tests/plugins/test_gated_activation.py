import numpy as np
import pytest
import torch

from precast.plugins import SUPPORTED_OPS
from precast.plugins.gated_activation import schema
from precast.plugins.gated_activation.reference import gated_activation
from precast.plugins.gated_activation.schema import GatedActivationAttributes


def test_the_op_is_listed() -> None:
    assert f"{schema.DOMAIN}.{schema.NAME}/{schema.VERSION}" in SUPPORTED_OPS


def test_an_unknown_activation_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'relu6'.*silu"):
        GatedActivationAttributes("relu6")


def test_it_is_torchs_silu_of_the_first_half_times_the_second() -> None:
    gate_up = np.random.default_rng(0).standard_normal((3, 2 * 33)).astype(np.float32) * 5
    gate, up = torch.from_numpy(gate_up).chunk(2, dim=-1)
    expected = torch.nn.functional.silu(gate) * up
    output = gated_activation(gate_up, GatedActivationAttributes("silu"))
    assert output.dtype == np.float32
    np.testing.assert_allclose(output, expected.numpy(), rtol=2e-6)


def test_very_negative_and_very_positive_gates() -> None:
    gate_up = np.array([[-1e30, -200.0, 0.0, 200.0, 1, 1, 1, 1]], np.float32)
    np.testing.assert_array_equal(
        gated_activation(gate_up, GatedActivationAttributes("silu")), np.array([[0, 0, 0, 200]], np.float32)
    )
