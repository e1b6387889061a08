"""GatedActivation's device kernel: fields, launches, ahead-of-time compilation, results.

No GPU is needed. What the kernel computes is checked by device_gated_activation_checks.py in a process of its own,
because an environment variable chooses Triton's interpreter once and for all.
"""

import dataclasses

import pytest

from precast.plugins.device.compiled_kernel import CUBIN_TARGETS, PTX_TARGET
from precast.plugins.device.op_call import OpCall
from precast.plugins.device.op_fields import field_types, from_arrays, to_array
from precast.plugins.gated_activation.device.launches import BLOCK, kernel_specs, launches, run_gated_activation
from precast.plugins.gated_activation.device.op_fields import MAX_FEATURES, GatedActivationFields
from tests.plugins.device_ops import (
    STREAM,
    Recorder,
    assert_compiles,
    assert_imports_without_triton,
    assert_launches_match,
    run_checks_in_interpreter,
)

FIELDS = GatedActivationFields("silu", 8200, "float16")


@pytest.fixture
def _triton() -> None:
    pytest.importorskip("triton", reason="Triton is not installed: device kernels cannot be compiled or interpreted")


def test_the_launch_passes_what_the_kernel_takes() -> None:
    assert_launches_match(launches(FIELDS, 5), kernel_specs(FIELDS))
    (launch,) = launches(FIELDS, 5)
    assert launch.grid == (5, 8200 // BLOCK + 1, 1)


def test_the_widest_row_fits_a_grid() -> None:
    (launch,) = launches(dataclasses.replace(FIELDS, num_features=MAX_FEATURES), 1)
    assert launch.grid[1] <= 65535
    assert 2 * MAX_FEATURES + BLOCK < 2**31


def test_no_rows_need_no_launch() -> None:
    assert launches(FIELDS, 0) == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "gelu"}, "GatedActivation: activation is 'gelu'"),
        ({"dtype": "float32"}, "GatedActivation: dtype is 'float32'"),
        ({"num_features": 0}, "GatedActivation: 0 features"),
        ({"num_features": MAX_FEATURES + 1}, "features; the device kernel does 1 to 16777216"),
    ],
)
def test_fields_that_make_no_sense_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(FIELDS, **change)  # type: ignore[arg-type]


def test_fields_survive_a_plan() -> None:
    arrays = {name: to_array(value) for name, value in dataclasses.asdict(FIELDS).items()}
    types = field_types(GatedActivationFields)
    assert GatedActivationFields(**from_arrays("GatedActivation", types, arrays)) == FIELDS


def test_gate_up_with_other_columns_is_refused() -> None:
    with pytest.raises(ValueError, match="gate_up has 8200 columns, the kernel is for 16400"):
        run_gated_activation(FIELDS, Recorder(), OpCall([(3, 8200)], (16,), (32,), 0, STREAM))  # type: ignore[arg-type]


@pytest.mark.usefixtures("_triton")
@pytest.mark.parametrize("target", CUBIN_TARGETS)
def test_it_compiles_for_every_target(target: str) -> None:
    assert_compiles(kernel_specs(FIELDS), target)


@pytest.mark.usefixtures("_triton")
def test_numbers_move_as_vectors_and_nothing_tiny_becomes_zero() -> None:
    """Which the interpreter does not show."""
    from precast.plugins.device.compile_triton import compile_kernel

    ptx = compile_kernel(kernel_specs(FIELDS)[0], PTX_TARGET, "ptx").code.decode()
    assert ptx.count("ld.global.v4.b32") == 2
    assert ptx.count("st.global.v4.b32") == 1
    assert "global.b16" not in ptx
    assert ".ftz" not in ptx


@pytest.mark.slow
@pytest.mark.usefixtures("_triton")
def test_the_kernel_is_the_reference_in_tritons_interpreter() -> None:
    run_checks_in_interpreter("device_gated_activation_checks.py")


def test_it_imports_without_triton() -> None:
    assert_imports_without_triton("precast.plugins.gated_activation.device.launches")
