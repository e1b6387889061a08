"""Ranks of one process that meet: their exchange, and of each a CUDA driver that only writes down what it is asked."""

import ctypes
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from precast.plugins.collectives.device.nccl_group import Exchange
from tests.plugins.fake_cuda_driver import FakeDriver

T = TypeVar("T")
PATIENCE_S = 20


class Handle:
    """CUipcMemHandle: 64 bytes at an address."""

    def __init__(self) -> None:
        self._bytes = (ctypes.c_ubyte * 64)()

    def getPtr(self) -> int:  # noqa: N802 - cuda-python's name
        return ctypes.addressof(self._bytes)


class CUipcMem_flags:  # noqa: N801
    CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS = 1


@dataclass
class PeerDriver(FakeDriver):
    """Of one rank. Device memory is what was copied to it.

    Attributes:
        rank: Its allocations begin at a million times 1 + this, those of rank r that it opens at a billion more.
        bus_id: Of its device.
        unreachable: Bus ids of devices that it has no peer access to.
    """

    rank: int = 0
    bus_id: str = ""
    unreachable: tuple[str, ...] = ()
    memory: dict[int, bytes] = field(default_factory=dict)
    CUipcMemHandle = Handle
    CUipcMem_flags = CUipcMem_flags

    def __post_init__(self) -> None:
        self.bus_id = self.bus_id or f"0000:0{self.rank}:00.0"
        self._next = 1_000_000 * (1 + self.rank)

    def names(self) -> list[str]:
        return [call[0] for call in self.calls]

    def cuMemAlloc(self, size_bytes: int) -> tuple[Any, ...]:  # noqa: N802
        address = self._next
        self._next += -(-size_bytes // 4096) * 4096
        return self._answer("cuMemAlloc", size_bytes, result=address)

    def cuMemFree(self, address: int) -> tuple[Any, ...]:  # noqa: N802
        return self._answer("cuMemFree", address)

    def cuMemsetD8(self, address: int, value: int, count: int) -> tuple[Any, ...]:  # noqa: N802
        return self._answer("cuMemsetD8", address, value, count)

    def cuMemsetD32Async(self, address: int, value: int, count: int, stream: int) -> tuple[Any, ...]:  # noqa: N802
        return self._answer("cuMemsetD32Async", address, value, count, stream)

    def cuCtxSynchronize(self) -> tuple[Any, ...]:  # noqa: N802
        return self._answer("cuCtxSynchronize")

    def cuIpcGetMemHandle(self, address: int) -> tuple[Any, ...]:  # noqa: N802
        handle = Handle()
        ctypes.memmove(handle.getPtr(), f"{address}".encode().ljust(64, b"\xff"), 64)
        return self._answer("cuIpcGetMemHandle", address, result=handle)

    def cuIpcOpenMemHandle(self, handle: Handle, flags: int) -> tuple[Any, ...]:  # noqa: N802
        data = ctypes.string_at(handle.getPtr(), 64)
        exported = int(data.rstrip(b"\xff"))
        assert len(data) == 64
        return self._answer("cuIpcOpenMemHandle", exported, flags, result=exported + 1_000_000_000)

    def cuIpcCloseMemHandle(self, address: int) -> tuple[Any, ...]:  # noqa: N802
        return self._answer("cuIpcCloseMemHandle", address)

    def cuMemcpyHtoD(self, address: int, source: int, size_bytes: int) -> tuple[Any, ...]:  # noqa: N802
        self.memory[address] = ctypes.string_at(source, size_bytes)
        return self._answer("cuMemcpyHtoD", address, size_bytes)

    def cuMemcpyDtoH(self, target: int, address: int, size_bytes: int) -> tuple[Any, ...]:  # noqa: N802
        ctypes.memmove(target, self.memory.get(address, bytes(size_bytes)), size_bytes)
        return self._answer("cuMemcpyDtoH", address, size_bytes)

    def cuDeviceGetPCIBusId(self, length: int, device: str) -> tuple[Any, ...]:  # noqa: N802
        assert device == "device 0"
        return self._answer("cuDeviceGetPCIBusId", length, result=self.bus_id.encode().ljust(length, b"\0"))

    def cuDeviceGetByPCIBusId(self, bus_id: bytes) -> tuple[Any, ...]:  # noqa: N802
        return self._answer("cuDeviceGetByPCIBusId", bus_id, result=f"device at {bus_id.decode()}")

    def cuDeviceCanAccessPeer(self, device: str, peer: str) -> tuple[Any, ...]:  # noqa: N802
        return self._answer(
            "cuDeviceCanAccessPeer", device, peer, result=int(peer.removeprefix("device at ") not in self.unreachable)
        )


class Meeting:
    """The exchange of all ranks, which checks that they call it alike."""

    def __init__(self, num_ranks: int) -> None:
        self._given: list[bytes] = [b""] * num_ranks
        self._barrier = threading.Barrier(num_ranks)
        self.count = 0

    def of(self, rank: int) -> Exchange:
        def exchange(mine: bytes) -> list[bytes]:
            self._given[rank] = mine
            if self._barrier.wait(PATIENCE_S) == 0:
                self.count += 1
            given = list(self._given)
            assert len({len(each) for each in given}) == 1
            self._barrier.wait(PATIENCE_S)
            return given

        return exchange

    def abort(self) -> None:
        self._barrier.abort()


def on_every_rank(num_ranks: int, run: Callable[[int, Exchange], T]) -> tuple[list[T | Exception], Meeting]:
    """What each rank's call gives or raises, all beside each other, and how they met."""
    meeting = Meeting(num_ranks)

    def one(rank: int) -> T | Exception:
        try:
            return run(rank, meeting.of(rank))
        except Exception as error:  # noqa: BLE001 - is the result
            return error

    with ThreadPoolExecutor(num_ranks) as pool:
        return list(pool.map(one, range(num_ranks))), meeting
