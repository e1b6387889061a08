"""A group whose collectives are NCCL's, with mailboxes beside it where ranks see each other's memory."""

from collections.abc import Callable
from typing import Any

from precast.plugins.collectives.device.group import GroupError, Mailboxes
from precast.plugins.collectives.device.nccl import Communicator
from precast.plugins.collectives.device.peer_memory import PeerMemory
from precast.plugins.device.driver import call_driver

Exchange = Callable[[bytes], list[bytes]]
"""Gives every rank's bytes to every rank, in the order of ranks; all ranks call it, with equally many."""


class NcclGroup:
    """A DeviceGroup (group.py). Made by open_group; closed or aborted by whoever made it.

    Sums that do not go through mailboxes are NCCL's: their bits may depend on the size of the message, so an engine
    that has this group never claims promise 5.
    """

    def __init__(
        self,
        driver: Any,
        tensor_rank: int,
        stage: Communicator | None,
        engine: Communicator | None,
        rank: int,
        num_ranks: int,
        peer_memory: PeerMemory | None,
    ) -> None:
        """`stage` is the communicator of the stage's ranks, None where there is one; `engine` that of all, None where
        there is one stage. `rank` is this one's number in the engine, `num_ranks` the tensor parallel size.
        """
        self._driver = driver
        self._tensor_rank, self._rank, self._num_ranks = tensor_rank, rank, num_ranks
        self._stage, self._engine = stage, engine
        self._peer_memory = peer_memory

    @property
    def num_ranks(self) -> int:
        return self._num_ranks

    @property
    def tensor_rank(self) -> int:
        return self._tensor_rank

    @property
    def mailboxes(self) -> Mailboxes | None:
        return None if self._peer_memory is None else self._peer_memory.mailboxes

    def all_reduce(self, x: int, y: int, num_elements: int, dtype: str, stream: int) -> None:
        _existing(self._stage, "stage").all_reduce(x, y, num_elements, dtype, stream)

    def all_gather(self, x: int, y: int, num_elements: int, dtype: str, stream: int) -> None:
        _existing(self._stage, "stage").all_gather(x, y, num_elements, dtype, stream)

    def send(self, x: int, num_elements: int, dtype: str, stream: int) -> None:
        _existing(self._engine, "pipeline").send(x, num_elements, dtype, self._rank + self._num_ranks, stream)

    def receive(self, y: int, num_elements: int, dtype: str, stream: int) -> None:
        _existing(self._engine, "pipeline").receive(y, num_elements, dtype, self._rank - self._num_ranks, stream)

    def write_int32(self, address: int, value: int, stream: int) -> None:
        call_driver(self._driver, "cuMemsetD32Async", address, value, 1, stream)

    def check(self) -> None:
        """Raise GroupError for what went wrong on the device since; after each step that was collected."""
        for communicator in (self._stage, self._engine):
            if communicator is not None:
                communicator.check()
        if self._peer_memory is not None:
            self._peer_memory.check()

    def close(self, exchange: Exchange) -> None:
        """Give all back, when all that was enqueued has ended. All ranks call it; they meet in `exchange` once."""
        if self._peer_memory is not None:
            self._peer_memory.close_peers()
        exchange(b"closed")
        if self._peer_memory is not None:
            self._peer_memory.free()
        for communicator in (self._stage, self._engine):
            if communicator is not None:
                communicator.close()

    def abort(self) -> None:
        """End at once: after a failure, when other ranks may be gone. Mailboxes stay until the process ends."""
        for communicator in (self._stage, self._engine):
            if communicator is not None:
                communicator.abort()


def _existing(communicator: Communicator | None, what: str) -> Communicator:
    if communicator is None:
        raise GroupError(f"this rank is alone in its {what}, and a plan for several ranks wants it to meet others")
    return communicator
