"""Memory of each GPU that the other GPUs of a stage see, set up through the CUDA driver (cuda.bindings.driver).

Ranks are processes: each exports its mailbox, and opens those of its peers at addresses of its own. Where that does not
work between some of them, none has peer memory, and they meet through NCCL. All ranks of an engine take the same steps,
so that they meet; each stage decides for itself.
"""

import ctypes
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from precast.plugins.collectives.device.group import GroupError, Mailboxes
from precast.plugins.collectives.device.mailbox import PROGRAMS, mailbox_bytes
from precast.plugins.collectives.device.messages import join_texts, split_texts
from precast.plugins.collectives.device.one_shot import MAX_RANKS
from precast.plugins.device.driver import DeviceError, call_driver

HANDLE_BYTES = 64
"""Of CUipcMemHandle."""
_BUS_ID_BYTES = 32
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_ALIGNMENT = 256
_BLOCK_BYTES = 2 << 20
"""The driver's granularity of device memory."""
_CALLS_BYTES = -(-4 * PROGRAMS // _ALIGNMENT) * _ALIGNMENT

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Offer:
    """What a rank tells the others: where it runs, on which device, and its mailbox; or why it has none."""

    host: str
    bus_id: str
    handle: bytes
    refusal: str

    def to_bytes(self) -> bytes:
        return self.handle.ljust(HANDLE_BYTES, b"\0") + join_texts(self.host, self.bus_id, self.refusal)

    @classmethod
    def from_bytes(cls, data: bytes) -> "_Offer":
        host, bus_id, refusal = split_texts(data[HANDLE_BYTES:])
        return cls(host, bus_id, data[:HANDLE_BYTES], refusal)


class PeerMemory:
    """The mailboxes of a stage. Made by open_peer_memory while the device's context is current, as for all calls."""

    def __init__(self, driver: Any, num_ranks: int, tensor_rank: int, timeout_ms: int) -> None:
        """Allocate this rank's mailbox and what its kernel needs beside it, all zero. Raises DeviceError."""
        self._driver = driver
        self._num_ranks, self._tensor_rank = num_ranks, tensor_rank
        self._opened: dict[int, int] = {}
        # Peers open whole blocks of the driver's: it must not have put anything else into this one.
        size_bytes = -(-mailbox_bytes(num_ranks) // _BLOCK_BYTES) * _BLOCK_BYTES
        self._mailbox = int(call_driver(driver, "cuMemAlloc", size_bytes))
        own_bytes = 2 * _CALLS_BYTES + 8 * num_ranks
        try:
            self._own = int(call_driver(driver, "cuMemAlloc", own_bytes))
        except DeviceError:
            call_driver(driver, "cuMemFree", self._mailbox)
            raise
        self.mailboxes = Mailboxes(
            table=self._own + 2 * _CALLS_BYTES,
            calls=self._own,
            missing=self._own + _CALLS_BYTES,
            timeout_ms=timeout_ms,
        )
        call_driver(driver, "cuMemsetD8", self._mailbox, 0, mailbox_bytes(num_ranks))
        call_driver(driver, "cuMemsetD8", self._own, 0, own_bytes)
        call_driver(driver, "cuCtxSynchronize")  # peers write flags as soon as they know the address

    def export(self) -> bytes:
        """The handle by which peers open the mailbox. Raises DeviceError."""
        handle = call_driver(self._driver, "cuIpcGetMemHandle", self._mailbox)
        return ctypes.string_at(int(handle.getPtr()), HANDLE_BYTES)

    def open_peers(self, handles: Sequence[bytes]) -> None:
        """Open the mailboxes of the stage's ranks, and tell the kernel where they are. Raises DeviceError."""
        flag = self._driver.CUipcMem_flags.CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS
        table = (ctypes.c_int64 * self._num_ranks)()
        for peer, data in enumerate(handles):
            if peer != self._tensor_rank:
                handle = self._driver.CUipcMemHandle()
                ctypes.memmove(int(handle.getPtr()), data, HANDLE_BYTES)
                self._opened[peer] = int(call_driver(self._driver, "cuIpcOpenMemHandle", handle, int(flag)))
            table[peer] = self._opened.get(peer, self._mailbox)
        call_driver(self._driver, "cuMemcpyHtoD", self.mailboxes.table, ctypes.addressof(table), ctypes.sizeof(table))
        # The copy may still be under way, and streams that are not the default one do not wait for it.
        call_driver(self._driver, "cuCtxSynchronize")

    def check(self) -> None:
        """Raise GroupError where a rank did not come to a sum in time: this rank's outputs since are of no use."""
        missing = (ctypes.c_int32 * PROGRAMS)()
        call_driver(
            self._driver, "cuMemcpyDtoH", ctypes.addressof(missing), self.mailboxes.missing, ctypes.sizeof(missing)
        )
        absent = [rank - 1 for rank in missing if rank]
        if absent:
            raise GroupError(
                f"AllReduce on tensor rank {self._tensor_rank} of {self._num_ranks}: tensor rank {absent[0]} did not "
                f"come within {self.mailboxes.timeout_ms / 1000:g} s"
            )

    def close_peers(self) -> None:
        """Close the peers' mailboxes, when this rank computes no more."""
        while self._opened:
            _, address = self._opened.popitem()
            call_driver(self._driver, "cuIpcCloseMemHandle", address)

    def free(self) -> None:
        """Give the memory back, when all peers have closed it: until then the driver does not define what that does."""
        for address in (self._own, self._mailbox):
            call_driver(self._driver, "cuMemFree", address)


def open_peer_memory(
    driver: Any,
    ranks: Sequence[int],
    tensor_rank: int,
    exchange: Callable[[bytes], list[bytes]],
    timeout_ms: int,
) -> PeerMemory | None:
    """Peer memory of a stage, or None, on all its ranks alike, where one cannot have it; the log says why.

    Args:
        driver: cuda.bindings.driver, with the context of this rank's device current.
        ranks: The numbers of the stage's ranks in the engine.
        tensor_rank: Which of them this is.
        exchange: Gives every rank's bytes to every rank of the engine; called twice.
        timeout_ms: How long a sum waits for a rank.
    """
    memory: PeerMemory | None = None
    offer, refusal = _Offer("", "", b"", ""), ""
    try:
        if len(ranks) > MAX_RANKS:
            raise GroupError(f"{len(ranks)} ranks are more than {MAX_RANKS}")
        memory = PeerMemory(driver, len(ranks), tensor_rank, timeout_ms)
        offer = _Offer(_BOOT_ID.read_text().strip(), _bus_id(driver), memory.export(), "")
    except (DeviceError, GroupError, OSError) as error:
        offer = _Offer("", "", b"", str(error))
    answers = exchange(offer.to_bytes())
    offers = [_Offer.from_bytes(answers[rank]) for rank in ranks]
    try:
        if memory is not None and not any(each.refusal for each in offers):
            _check_reachable(driver, offers, tensor_rank)
            memory.open_peers([each.handle for each in offers])
    except (DeviceError, GroupError) as error:
        refusal = str(error)
    verdicts = exchange(join_texts(offer.refusal or refusal))
    refusals = {rank: split_texts(verdicts[rank])[0] for rank in ranks}
    first = next((f"rank {rank}: {text}" for rank, text in refusals.items() if text), None)
    if first is None:
        return memory
    _logger.info("ranks do not see each other's memory and sum through NCCL: %s", first)
    if memory is not None:
        memory.close_peers()  # its own allocation stays: another rank may have it open still
    return None


def _bus_id(driver: Any) -> str:
    device = call_driver(driver, "cuCtxGetDevice")
    return bytes(call_driver(driver, "cuDeviceGetPCIBusId", _BUS_ID_BYTES, device)).split(b"\0")[0].decode("ascii")


def _check_reachable(driver: Any, offers: Sequence[_Offer], tensor_rank: int) -> None:
    """Raise GroupError or DeviceError where this rank's device does not reach the others'."""
    own = offers[tensor_rank]
    device = call_driver(driver, "cuCtxGetDevice")
    for peer, other in enumerate(offers):
        if peer == tensor_rank:
            continue
        if other.host != own.host:
            raise GroupError(f"tensor rank {peer} runs on another host")
        if other.bus_id == own.bus_id:
            raise GroupError(f"tensor rank {peer} has the same GPU, {own.bus_id}")
        peer_device = call_driver(driver, "cuDeviceGetByPCIBusId", other.bus_id.encode("ascii"))
        if not int(call_driver(driver, "cuDeviceCanAccessPeer", device, peer_device)):
            raise GroupError(f"GPU {own.bus_id} has no peer access to GPU {other.bus_id} of tensor rank {peer}")
