"""RmsNorm's kernel: what to compile, what to launch, and how to run it. Imports no Triton (rms_norm_kernel.py does)."""

from precast.plugins.device.kernel_spec import Constant, KernelSpec, Parameter
from precast.plugins.device.launch import Launch
from precast.plugins.device.launcher import Launcher
from precast.plugins.device.op_call import OpCall
from precast.plugins.device.op_fields import TRITON_TYPES
from precast.plugins.rms_norm.device.op_fields import RmsNormFields
from precast.plugins.rms_norm.schema import NAME

RMS_NORM = "rms_norm"
_ELEMENTS_PER_WARP = 512
"""16 a thread, two vectors of 16 bytes: few rows, as decoding has them, should be short rather than thrifty."""
_MAX_WARPS = 16


def kernel_specs(op_fields: RmsNormFields) -> tuple[KernelSpec, ...]:
    """The kernel."""
    element = "*" + TRITON_TYPES[op_fields.dtype]
    absent: tuple[tuple[str, Constant], ...] = () if op_fields.has_residual else (("residual", None), ("total", None))
    padded = 1 << (op_fields.num_features - 1).bit_length()
    return (
        KernelSpec(
            "precast.plugins.rms_norm.device.rms_norm_kernel",
            RMS_NORM,
            tuple(Parameter(name, element) for name in _buffers(op_fields)),
            (*absent, ("H", op_fields.num_features), ("EPSILON", op_fields.epsilon)),
            num_warps=min(_MAX_WARPS, max(1, padded // _ELEMENTS_PER_WARP)),
        ),
    )


def launches(op_fields: RmsNormFields, num_rows: int) -> tuple[Launch, ...]:
    """The launch for T rows; none for no rows."""
    return (Launch(RMS_NORM, (num_rows, 1, 1), _buffers(op_fields), ()),) if num_rows else ()


def run_rms_norm(op_fields: RmsNormFields, launcher: Launcher, call: OpCall) -> None:
    """Enqueue the norm of x [T, H]. There is no workspace.

    Inputs and outputs are in the schema's order; those that are absent may be left out, or have any address.

    Raises:
        DeviceError: the driver refused the launch.
        ValueError: x has other columns than the kernel was compiled for.
    """
    num_rows, num_features = call.shapes[0]
    if num_features != op_fields.num_features:
        raise ValueError(f"{NAME}: x has {num_features} columns, the kernel is for {op_fields.num_features}")
    addresses = dict(zip(("x", "weight", "residual"), call.inputs, strict=False))
    addresses |= zip(("y", "total"), call.outputs, strict=False)
    for launch in launches(op_fields, num_rows):
        launcher.launch(launch, addresses, call.stream)


def _buffers(op_fields: RmsNormFields) -> tuple[str, ...]:
    return ("x", "weight", "residual", "y", "total") if op_fields.has_residual else ("x", "weight", "y")
