"""Send on NVIDIA GPUs: x [T, F] of 16 bits -> rows, int32 [1].

On a GPU it ends when the next stage has taken x, unless NCCL has room for it: a stage is ahead of the next by no more
than what NCCL buffers.
"""

from dataclasses import dataclass

from precast.plugins.collectives.device.group import DeviceGroup
from precast.plugins.device.op_call import OpCall
from precast.plugins.device.op_fields import check_dtype
from precast.plugins.send import schema


@dataclass(frozen=True)
class SendFields:
    """The dtype of x. Raises ValueError where there is no such."""

    dtype: str

    def __post_init__(self) -> None:
        check_dtype(schema.NAME, self.dtype)


def run_send(plugin_fields: SendFields, group: DeviceGroup, call: OpCall) -> None:
    """Enqueue it. Raises DeviceError, GroupError: the driver or NCCL refused."""
    rows, features = call.shapes[0]
    group.send(call.inputs[0], rows * features, plugin_fields.dtype, call.stream)
    group.write_int32(call.outputs[0], rows, call.stream)
