"""GatedActivation's kernel: what to compile, what to launch, and how to run it.

Imports no Triton (gated_activation_kernel.py does).
"""

from precast.plugins.device.kernel_spec import KernelSpec, Parameter
from precast.plugins.device.launch import Launch
from precast.plugins.device.launcher import Launcher
from precast.plugins.device.op_call import OpCall
from precast.plugins.device.op_fields import TRITON_TYPES
from precast.plugins.gated_activation.device.op_fields import GatedActivationFields
from precast.plugins.gated_activation.schema import NAME

GATED_ACTIVATION = "gated_activation"
BLOCK = 1024
"""J: 16 bytes of gate and 16 of up for each of 128 threads."""
_NUM_WARPS = 4


def kernel_specs(op_fields: GatedActivationFields) -> tuple[KernelSpec, ...]:
    """The kernel."""
    element = "*" + TRITON_TYPES[op_fields.dtype]
    return (
        KernelSpec(
            "precast.plugins.gated_activation.device.gated_activation_kernel",
            GATED_ACTIVATION,
            (Parameter("gate_up", element), Parameter("output", element)),
            (("I", op_fields.num_features), ("J", BLOCK)),
            num_warps=_NUM_WARPS,
        ),
    )


def launches(op_fields: GatedActivationFields, num_rows: int) -> tuple[Launch, ...]:
    """The launch for T rows; none for no rows."""
    tiles = -(-op_fields.num_features // BLOCK)
    return (Launch(GATED_ACTIVATION, (num_rows, tiles, 1), ("gate_up", "output"), ()),) if num_rows else ()


def run_gated_activation(op_fields: GatedActivationFields, launcher: Launcher, call: OpCall) -> None:
    """Enqueue the op for gate_up [T, 2 * I]. There is no workspace.

    Raises:
        DeviceError: the driver refused the launch.
        ValueError: gate_up has other columns than the kernel was compiled for.
    """
    num_rows, num_columns = call.shapes[0]
    if num_columns != 2 * op_fields.num_features:
        raise ValueError(f"{NAME}: gate_up has {num_columns} columns, the kernel is for {2 * op_fields.num_features}")
    addresses = {"gate_up": call.inputs[0], "output": call.outputs[0]}
    for launch in launches(op_fields, num_rows):
        launcher.launch(launch, addresses, call.stream)
