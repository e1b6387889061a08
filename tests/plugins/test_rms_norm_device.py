"""RmsNorm's device kernel: fields, launches, ahead-of-time compilation, results.

No GPU is needed. What the kernel computes is checked by device_rms_norm_checks.py in a process of its own, because an
environment variable chooses Triton's interpreter once and for all.
"""

import dataclasses

import pytest

from precast.plugins.device.compiled_kernel import CUBIN_TARGETS, PTX_TARGET
from precast.plugins.device.op_call import OpCall
from precast.plugins.device.op_fields import field_types, from_arrays, to_array
from precast.plugins.rms_norm.device.launches import kernel_specs, launches, run_rms_norm
from precast.plugins.rms_norm.device.op_fields import MAX_FEATURES, RmsNormFields
from tests.plugins.device_ops import (
    STREAM,
    Recorder,
    assert_compiles,
    assert_imports_without_triton,
    assert_launches_match,
    run_checks_in_interpreter,
)

FIELDS = RmsNormFields(2880, 1e-5, 1, "bfloat16")


@pytest.fixture
def _triton() -> None:
    pytest.importorskip("triton", reason="Triton is not installed: device kernels cannot be compiled or interpreted")


@pytest.mark.parametrize("has_residual", [0, 1])
def test_the_launch_passes_what_the_kernel_takes(has_residual: int) -> None:
    op_fields = dataclasses.replace(FIELDS, has_residual=has_residual)
    assert_launches_match(launches(op_fields, 5), kernel_specs(op_fields))
    (launch,) = launches(op_fields, 5)
    assert launch.grid == (5, 1, 1)
    assert ("residual" in launch.buffers, "total" in launch.buffers) == (bool(has_residual),) * 2


def test_a_wider_row_has_more_warps() -> None:
    widths = (1, 100, 1024, 2880, 4096, 8192, MAX_FEATURES)
    specs = [kernel_specs(dataclasses.replace(FIELDS, num_features=width))[0] for width in widths]
    assert [spec.num_warps for spec in specs] == [1, 1, 2, 8, 8, 16, 16]


def test_no_rows_need_no_launch() -> None:
    assert launches(FIELDS, 0) == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epsilon": -1.0}, "RmsNorm: epsilon is -1.0"),
        ({"dtype": "float32"}, "RmsNorm: dtype is 'float32'"),
        ({"num_features": 0}, "RmsNorm: 0 features"),
        ({"num_features": MAX_FEATURES + 1}, "RmsNorm: 16385 features; the device kernel does 1 to 16384"),
        ({"has_residual": 2}, "RmsNorm: has_residual is 2"),
    ],
)
def test_fields_that_make_no_sense_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(FIELDS, **change)  # type: ignore[arg-type]


def test_fields_survive_a_plan() -> None:
    arrays = {name: to_array(value) for name, value in dataclasses.asdict(FIELDS).items()}
    again = RmsNormFields(**from_arrays("RmsNorm", field_types(RmsNormFields), arrays))
    assert dataclasses.replace(again, epsilon=FIELDS.epsilon) == FIELDS
    assert again.epsilon == pytest.approx(FIELDS.epsilon)


def test_inputs_and_outputs_are_in_the_schemas_order() -> None:
    recorder = Recorder()
    run_rms_norm(FIELDS, recorder, OpCall([(3, 2880), (2880,), (3, 2880)], (16, 32, 48), (64, 80), 0, STREAM))  # type: ignore[arg-type]
    assert recorder.addresses == {"x": 16, "weight": 32, "residual": 48, "y": 64, "total": 80}


@pytest.mark.parametrize(("inputs", "outputs"), [((16, 32), (64,)), ((16, 32, 0), (64, 0))])
def test_absent_ones_may_be_left_out_or_have_any_address(inputs: tuple[int, ...], outputs: tuple[int, ...]) -> None:
    recorder = Recorder()
    op_fields = dataclasses.replace(FIELDS, has_residual=0)
    run_rms_norm(op_fields, recorder, OpCall([(3, 2880), (2880,)], inputs, outputs, 0, STREAM))  # type: ignore[arg-type]
    assert recorder.addresses == {"x": 16, "weight": 32, "y": 64}


def test_x_with_other_columns_is_refused() -> None:
    with pytest.raises(ValueError, match="x has 64 columns, the kernel is for 2880"):
        run_rms_norm(FIELDS, Recorder(), OpCall([(3, 64)], (16, 32, 48), (64, 80), 0, STREAM))  # type: ignore[arg-type]


@pytest.mark.usefixtures("_triton")
@pytest.mark.parametrize("target", CUBIN_TARGETS)
def test_it_compiles_for_every_target(target: str) -> None:
    assert_compiles(kernel_specs(FIELDS), target)


@pytest.mark.usefixtures("_triton")
def test_the_scale_is_correctly_rounded_and_numbers_move_as_vectors() -> None:
    """Which the interpreter does not show."""
    from precast.plugins.device.compile_triton import compile_kernel

    ptx = compile_kernel(kernel_specs(FIELDS)[0], PTX_TARGET, "ptx").code.decode()
    assert ptx.count("div.rn.f32") == 2
    assert "sqrt.rn.f32" in ptx
    assert "approx" not in ptx
    assert "ld.global.v4.b32" in ptx
    assert "st.global.v4.b32" in ptx
    assert "global.b16" not in ptx


@pytest.mark.slow
@pytest.mark.usefixtures("_triton")
def test_the_kernel_is_the_reference_in_tritons_interpreter() -> None:
    run_checks_in_interpreter("device_rms_norm_checks.py")


def test_it_imports_without_triton() -> None:
    assert_imports_without_triton("precast.plugins.rms_norm.device.launches")
