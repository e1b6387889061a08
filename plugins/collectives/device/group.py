"""What collectives' plugins are given when they run: this rank's way to the others of its engine."""

from dataclasses import dataclass
from typing import Protocol


class GroupError(RuntimeError):
    """Ranks cannot meet; the message names the rank and says why."""


@dataclass(frozen=True)
class Mailboxes:
    """The mailboxes of a stage (mailbox.py), as the one-shot kernel is given them. Addresses are on this rank's device.

    Attributes:
        table: int64 [N], the address of each tensor rank's mailbox.
        calls: int32 [G], zero before the first call; only the kernel writes it.
        missing: int32 [G], zero until a rank does not come; see one_shot_kernel.py.
        timeout_ms: How long the kernel waits for a rank.
    """

    table: int
    calls: int
    missing: int
    timeout_ms: int


class DeviceGroup(Protocol):
    """One rank's connection to the others. Ranks are numbered as in docs/ranks.md.

    Calls only enqueue work on `stream`, a CUDA stream's handle, and may be captured into a graph. All ranks of the
    stage make the same calls in the same order, with equal numbers of elements, and the stages before and behind answer
    each send with a receive. Addresses are of device memory; `dtype` is bfloat16 or float16.

    Raises (all calls):
        GroupError: the library below refused; the message has its words.
    """

    @property
    def num_ranks(self) -> int:
        """N, the tensor ranks of the stage."""

    @property
    def tensor_rank(self) -> int:
        """Which of them this is."""

    @property
    def mailboxes(self) -> Mailboxes | None:
        """None where ranks of the stage do not see each other's memory; on all of them or on none."""

    def all_reduce(self, x: int, y: int, num_elements: int, dtype: str, stream: int) -> None:
        """y = sum of all tensor ranks' x, [num_elements] each; in which order and precision is the library's choice."""

    def all_gather(self, x: int, y: int, num_elements: int, dtype: str, stream: int) -> None:
        """y [N, num_elements] = all tensor ranks' x [num_elements], on every one of them."""

    def send(self, x: int, num_elements: int, dtype: str, stream: int) -> None:
        """Hand x to the same tensor rank of the next stage."""

    def receive(self, y: int, num_elements: int, dtype: str, stream: int) -> None:
        """Take what the same tensor rank of the stage before hands over."""

    def write_int32(self, address: int, value: int, stream: int) -> None:
        """Write one number, in stream order."""


class GroupSlot:
    """Where a session puts its group before it runs a plan; plugins look there when they run, and not before.

    TensorRT has one registry of plugins for a process, so there is one slot: with it, creators are registered once, and
    engines may come and go.
    """

    def __init__(self) -> None:
        self._group: DeviceGroup | None = None

    def install(self, group: DeviceGroup | None) -> None:
        """From now on plugins meet in `group`; None takes it away. Not while a plan runs."""
        self._group = group

    def __call__(self) -> DeviceGroup:
        """Raises GroupError where none is installed."""
        if self._group is None:
            raise GroupError(
                "it meets other ranks, and this process has joined none: open a group and install it first"
            )
        return self._group
