import numpy as np
import pytest

from precast.plugins.linear.pack import pack
from precast.plugins.linear.reference import linear
from precast.plugins.linear.schema import NAME, LinearAttributes
from tests.kernel_levels import LEVELS
from tests.plugins.op_session import run_op


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("layout", ["x16k1.f32/1", "x16k2.bf16/1"])
@pytest.mark.parametrize(("rows", "in_features", "out_features"), [(1, 1, 1), (5, 33, 50), (70, 576, 200)])
def test_the_kernel_is_the_reference(
    monkeypatch: pytest.MonkeyPatch, level: str, layout: str, rows: int, in_features: int, out_features: int
) -> None:
    generator = np.random.default_rng(rows)
    x = generator.standard_normal((rows, in_features)).astype(np.float32)
    bias = generator.standard_normal(out_features).astype(np.float32)
    weight = pack(layout, [generator.standard_normal((out_features, in_features)).astype(np.float32)])
    attributes = {"in_features": in_features, "out_features": out_features, "layout": layout}
    for given_bias in (None, bias):
        (y,) = run_op(monkeypatch, level, NAME, [x, weight, given_bias], attributes)
        expected = linear(x, weight, LinearAttributes(in_features, out_features, layout), given_bias)
        np.testing.assert_allclose(y, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def test_a_weight_of_another_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    attributes = {"in_features": 4, "out_features": 4, "layout": "x16k1.f32/1"}
    with pytest.raises(Exception, match=r"in layout x16k1\.f32/1 has 256 bytes, not 192"):
        run_op(monkeypatch, "portable", NAME, [np.zeros((1, 4), np.float32), np.zeros(192, np.uint8)], attributes)
