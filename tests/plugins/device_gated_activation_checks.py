"""GatedActivation's device kernel against its reference, in Triton's interpreter.

Not collected by itself: test_gated_activation_device.py runs this file in a process whose TRITON_INTERPRET is 1.
"""

import numpy as np
import pytest

from precast.plugins.gated_activation.device import launches
from precast.plugins.gated_activation.device.launches import kernel_specs, run_gated_activation
from precast.plugins.gated_activation.device.op_fields import GatedActivationFields
from tests.plugins.device_ops import DTYPES, Array, assert_same_bits, assert_within, do_last_row_only, run_op

UNIT = 2.0**-24
EXP_ERROR = 2 * UNIT
"""Of exp(x), relative, for each unit of |x|: x is multiplied by log2(e) before the GPU's exp2."""
OTHER_ERRORS = 8 * UNIT
"""exp2 and the quotient within two units in the last place each, the sum and the product rounded."""
LARGEST_EXP = 88.722
"""exp of more is infinite in fp32."""


def run(gate_up: Array) -> Array:
    dtype = next(name for name, type_ in DTYPES.items() if gate_up.dtype == type_)
    rows, columns = gate_up.shape
    op_fields = GatedActivationFields("silu", columns // 2, dtype)
    output = np.full((rows, columns // 2), np.nan, gate_up.dtype)
    run_op(run_gated_activation, op_fields, kernel_specs(op_fields), [gate_up], [output])
    return output


def check(gate_up: Array) -> None:
    """The device rounds a number that is the exact one but for fp32's errors, with an exp that is fp32's."""
    with np.errstate(all="ignore"):
        gate, up = np.split(gate_up.astype(np.float64), 2, axis=-1)
        exact = gate / (1 + np.where(-gate > LARGEST_EXP, np.inf, np.exp(-gate))) * up
        error = np.abs(exact) * (OTHER_ERRORS + EXP_ERROR * np.abs(gate)) + 2.0**-149
        error = np.where(np.isfinite(exact) & (exact != 0), error, 0)
        bounds = [(exact + sign * error).astype(np.float32).astype(gate_up.dtype) for sign in (-1, 1)]
    assert_within(run(gate_up), *bounds)


def random_case(dtype: str, rows: int, features: int) -> Array:
    generator = np.random.default_rng(rows * features)
    result: Array = (4 * generator.standard_normal((rows, 2 * features))).astype(DTYPES[dtype])
    return result


def every_gate(dtype: str) -> Array:
    """Rows of all 65536 gates there are; what is up is 1, then random, tiny, infinite and NaN."""
    gate = np.arange(2**16).astype(np.uint16).view(DTYPES[dtype])
    random = np.random.default_rng(0).standard_normal(gate.size).astype(gate.dtype)
    ups = [np.ones_like(gate), random, *(np.full_like(gate, value) for value in (1e-7, np.inf, np.nan))]
    return np.stack([np.concatenate([gate, up]) for up in ups])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "features"), [(1, 1), (3, 7), (50, 33), (1, 1024), (2, 1025), (2, 5000)])
def test_it_is_the_reference_rounded_once(dtype: str, rows: int, features: int) -> None:
    check(random_case(dtype, rows, features))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_gate(dtype: str) -> None:
    check(every_gate(dtype))


def test_the_bounds_are_narrow() -> None:
    """Nearly all elements have one right answer, so rounding twice would show."""
    gate_up = random_case("bfloat16", 4, 1000)
    gate, up = np.split(gate_up.astype(np.float32), 2, axis=-1)
    silu = gate / (1 + np.exp(-gate))
    once = (silu * up).astype(gate_up.dtype)
    assert (once.view(np.uint16) == run(gate_up).view(np.uint16)).mean() > 0.999
    twice = (silu.astype(gate_up.dtype).astype(np.float32) * up).astype(gate_up.dtype)
    assert (once.view(np.uint16) != twice.view(np.uint16)).mean() > 0.1


def test_signs_of_zero_and_infinities() -> None:
    values = [
        (-0.0, 1.0, -0.0),
        (-200.0, 1.0, -0.0),
        (-200.0, -1.0, 0.0),
        (np.inf, -2.0, -np.inf),
        (3e38, 3e38, np.inf),
    ]
    gate, up, expected = (np.array(column, DTYPES["bfloat16"]) for column in zip(*values, strict=True))
    assert_same_bits(run(np.concatenate([gate, up])[None]), expected[None])
    assert np.isnan(run(np.array([[-np.inf, 1.0]], np.float16))[0, 0])


@pytest.mark.parametrize("features", [3, 16, 1000])
def test_rows_follow_each_other(features: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of large numbers of rows and tiles each element is its own."""
    monkeypatch.setattr(launches, "BLOCK", 128)
    gate_up = np.zeros((20, 2 * features), np.float16)
    gate_up[:, :features] = 1000  # of which silu is 1000 in fp16, and its product with a power of two exact
    gate_up[:, features:] = 2.0 ** np.random.default_rng(0).integers(-10, 6, (20, features))
    assert_same_bits(run(gate_up), gate_up[:, :features] * gate_up[:, features:])


def test_a_row_beyond_2_to_the_31(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that nobody touches is not there."""
    rows, features = 2**17 + 1, 2**13
    gate_up, output = np.zeros((rows, 2 * features), np.float16), np.zeros((rows, features), np.float16)
    gate_up[-1] = random_case("float16", 1, features)
    op_fields = GatedActivationFields("silu", features, "float16")
    expected = run(gate_up[-1:].copy())
    do_last_row_only(monkeypatch, launches, rows)
    run_op(run_gated_activation, op_fields, kernel_specs(op_fields), [gate_up], [output])
    assert_same_bits(output[-1:], expected)
