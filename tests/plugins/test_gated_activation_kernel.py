import numpy as np
import pytest

from precast.plugins.gated_activation.reference import gated_activation
from precast.plugins.gated_activation.schema import NAME, GatedActivationAttributes
from tests.kernel_levels import LEVELS
from tests.plugins.op_session import run_op


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 17), (40, 1536)])
def test_the_kernel_is_the_reference(monkeypatch: pytest.MonkeyPatch, level: str, rows: int, width: int) -> None:
    gate_up = (np.random.default_rng(rows).standard_normal((rows, 2 * width)) * 5).astype(np.float32)
    (output,) = run_op(monkeypatch, level, NAME, [gate_up], {"activation": "silu"})
    np.testing.assert_allclose(output, gated_activation(gate_up, GatedActivationAttributes("silu")), rtol=1e-6)
