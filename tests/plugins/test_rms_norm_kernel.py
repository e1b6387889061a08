import numpy as np
import pytest

from precast.plugins.rms_norm.reference import rms_norm
from precast.plugins.rms_norm.schema import NAME, RmsNormAttributes
from tests.kernel_levels import LEVELS
from tests.plugins.op_session import run_op


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("rows", "hidden"), [(1, 1), (3, 17), (70, 576)])
def test_the_kernel_is_the_reference(monkeypatch: pytest.MonkeyPatch, level: str, rows: int, hidden: int) -> None:
    generator = np.random.default_rng(rows)
    x, residual = generator.standard_normal((2, rows, hidden)).astype(np.float32)
    weight = generator.standard_normal(hidden).astype(np.float32)
    attributes = RmsNormAttributes(1e-5)
    (y,) = run_op(monkeypatch, level, NAME, [x, weight], {"epsilon": 1e-5})
    np.testing.assert_allclose(y, rms_norm(x, weight, attributes)[0], rtol=1e-6)
    y, total = run_op(monkeypatch, level, NAME, [x, weight, residual], {"epsilon": 1e-5}, num_outputs=2)
    expected_y, expected_total = rms_norm(x, weight, attributes, residual)
    np.testing.assert_allclose(y, expected_y, rtol=1e-6)
    np.testing.assert_array_equal(total, expected_total)
