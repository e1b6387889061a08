"""AllReduce on NVIDIA GPUs: x and y [T, F] of 16 bits.

A short sum goes through the ranks' mailboxes, by one kernel that adds up in fp32 in the order of ranks and rounds once,
which is the op's reference for inputs and outputs of 16 bits. A longer one, and any where ranks do not see each other's
memory, is NCCL's, which adds up in an order of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass

from precast.plugins.all_reduce import schema
from precast.plugins.collectives.device.group import DeviceGroup
from precast.plugins.collectives.device.num_ranks import check_num_ranks
from precast.plugins.collectives.device.one_shot import fits_one_shot, one_shot_launch
from precast.plugins.device.launcher import Launcher
from precast.plugins.device.op_fields import check_dtype


@dataclass(frozen=True)
class AllReduceFields:
    """The op's attribute, and the dtype of x and y. Raises ValueError where they make no sense."""

    num_ranks: int
    dtype: str

    def __post_init__(self) -> None:
        schema.AllReduceAttributes(self.num_ranks)
        check_dtype(schema.NAME, self.dtype)


def run_all_reduce(
    plugin_fields: AllReduceFields,
    group: DeviceGroup,
    launcher: Callable[[], Launcher],
    num_elements: int,
    x: int,
    y: int,
    stream: int,
) -> None:
    """Enqueue a sum. Which way it goes follows from what is equal on all ranks, so they all go the same.

    Args:
        launcher: Of the plugin's kernels; asked only if they are used.
        x, y: Device addresses, multiples of 16.

    Raises:
        DeviceError, GroupError: the driver or NCCL refused.
        ValueError: the group has another number of ranks than the plan.
    """
    check_num_ranks(schema.NAME, plugin_fields.num_ranks, group)
    mailboxes = group.mailboxes
    if mailboxes is None or not fits_one_shot(num_elements):
        group.all_reduce(x, y, num_elements, plugin_fields.dtype, stream)
        return
    addresses = {"x": x, "y": y, "mailboxes": mailboxes.table, "calls": mailboxes.calls, "missing": mailboxes.missing}
    launcher().launch(one_shot_launch(num_elements, group.tensor_rank, mailboxes.timeout_ms), addresses, stream)
