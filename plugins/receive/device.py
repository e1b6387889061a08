"""Receive on NVIDIA GPUs: token_ids int32 [T] -> y [T, F] of 16 bits.

That the stage before sends as many rows is not checked on a GPU: all stages run the same steps.
"""

from dataclasses import dataclass

from precast.plugins.collectives.device.group import DeviceGroup
from precast.plugins.device.op_call import OpCall
from precast.plugins.device.op_fields import check_dtype
from precast.plugins.receive import schema


@dataclass(frozen=True)
class ReceiveFields:
    """The op's attribute, and the dtype of y. Raises ValueError where they make no sense."""

    num_features: int
    dtype: str

    def __post_init__(self) -> None:
        schema.ReceiveAttributes(self.num_features)
        check_dtype(schema.NAME, self.dtype)


def run_receive(plugin_fields: ReceiveFields, group: DeviceGroup, call: OpCall) -> None:
    """Enqueue it. Raises DeviceError, GroupError: the driver or NCCL refused."""
    num_elements = call.shapes[0][0] * plugin_fields.num_features
    group.receive(call.outputs[0], num_elements, plugin_fields.dtype, call.stream)
