"""AllGather on NVIDIA GPUs: x [R, L] -> y [N, R, L], of 16 bits, on every rank.

NCCL joins whole messages, so ranks lie one behind the other: y[r] is x of tensor rank r. The builder adds what makes
the op's [R, F] of it, in operators of ONNX (builder/backends/lowering/lower_collectives.py). So `root` is -1.
"""

from dataclasses import dataclass

from precast.plugins.all_gather import schema
from precast.plugins.collectives.device.group import DeviceGroup
from precast.plugins.collectives.device.num_ranks import check_num_ranks
from precast.plugins.device.op_call import OpCall
from precast.plugins.device.op_fields import check_dtype


@dataclass(frozen=True)
class AllGatherFields:
    """The op's attributes, and the dtype of x and y. Raises ValueError where they make no sense."""

    num_ranks: int
    num_features: int
    root: int
    dtype: str

    def __post_init__(self) -> None:
        schema.AllGatherAttributes(self.num_ranks, self.num_features, self.root)
        if self.root != schema.EVERY_RANK:
            raise ValueError(
                f"AllGather: root is {self.root}; the device gives every rank the rows, {schema.EVERY_RANK}"
            )
        check_dtype(schema.NAME, self.dtype)


def run_all_gather(plugin_fields: AllGatherFields, group: DeviceGroup, call: OpCall) -> None:
    """Enqueue it. Raises DeviceError, GroupError: the driver or NCCL refused."""
    check_num_ranks(schema.NAME, plugin_fields.num_ranks, group)
    rows, columns = call.shapes[0]
    group.all_gather(call.inputs[0], call.outputs[0], rows * columns, plugin_fields.dtype, call.stream)
