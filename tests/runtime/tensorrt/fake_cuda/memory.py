"""Memory of devices and pinned memory of the host: real memory at real addresses, with every access checked.

An address is never given out twice, so that a use after free is always seen; the pages behind it go back to the
system when it is freed. New memory holds 0xff bytes, which are NaN or -1: whoever reads it sees that nobody wrote it.
"""

import bisect
import mmap
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.runtime.tensorrt.fake_cuda.errors import Misuse

PINNED = -1
"""In place of the ordinal of a device."""
_UNWRITTEN = 0xFF
_MOST_FILLED_BYTES = 64 << 20
"""Larger memory is left zero, or it would really be taken from the system."""


@dataclass(frozen=True)
class Span:
    """Memory that an operation touches. Host memory counts as well."""

    address: int
    size_bytes: int
    is_written: bool = False

    def overlaps(self, other: "Span") -> bool:
        return self.address < other.address + other.size_bytes and other.address < self.address + self.size_bytes

    def conflicts(self, other: "Span") -> bool:
        """Whether it matters which of the two comes first."""
        return (self.is_written or other.is_written) and self.overlaps(other)


class Allocation:
    """Bytes that were asked for, and whether they are freed."""

    def __init__(self, size_bytes: int, ordinal: int, owner: int) -> None:
        self.size_bytes, self.ordinal, self.owner = size_bytes, ordinal, owner
        self.is_freed = False
        self._pages = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._bytes = np.frombuffer(self._pages, np.uint8)
        self.address = int(self._bytes.ctypes.data)
        if size_bytes <= _MOST_FILLED_BYTES:
            self._bytes.fill(_UNWRITTEN)

    @property
    def span(self) -> Span:
        return Span(self.address, self.size_bytes, is_written=True)

    @property
    def kind(self) -> str:
        return "pinned" if self.ordinal == PINNED else f"device {self.ordinal}"

    def view(self, address: int, size_bytes: int) -> NDArray[np.uint8]:
        start = address - self.address
        return self._bytes[start : start + size_bytes]

    def free(self) -> None:
        self.is_freed = True
        self._pages.madvise(mmap.MADV_DONTNEED)

    def __str__(self) -> str:
        return f"{self.size_bytes} bytes of {self.kind} memory at {self.address:#x}"


class Memory:
    """Every allocation that ever was, by address."""

    def __init__(self) -> None:
        self._addresses: list[int] = []
        self._allocations: dict[int, Allocation] = {}

    def allocate(self, size_bytes: int, ordinal: int, owner: int) -> Allocation:
        """`ordinal` is that of a device, or PINNED; `owner` is that of the device whose context it belongs to."""
        allocation = Allocation(size_bytes, ordinal, owner)
        bisect.insort(self._addresses, allocation.address)
        self._allocations[allocation.address] = allocation
        return allocation

    def holds(self, allocation: Allocation) -> bool:
        """Whether it is one of these, and lives."""
        return self._allocations.get(allocation.address) is allocation and not allocation.is_freed

    def living(self) -> list[Allocation]:
        return [each for each in self._allocations.values() if not each.is_freed]

    def starting_at(self, address: int) -> Allocation:
        """What is to be freed.

        Raises:
            Misuse: nothing starts there, or it is freed already.
        """
        allocation = self._allocations.get(address)
        if allocation is None:
            raise Misuse(f"no memory starts at {address:#x}")
        if allocation.is_freed:
            raise Misuse(f"{allocation} is freed already")
        return allocation

    def find(self, address: int, size_bytes: int) -> Allocation:
        """The allocation that holds all of these bytes.

        Raises:
            Misuse: there is none, it is freed, or it ends before them.
        """
        index = bisect.bisect_right(self._addresses, address)
        allocation = self._allocations[self._addresses[index - 1]] if index else None
        # One past the end belongs to nothing, though the next page may.
        if allocation is None or address >= allocation.address + allocation.size_bytes:
            raise Misuse(f"{address:#x} is neither device memory nor pinned memory")
        if allocation.is_freed:
            raise Misuse(f"use after free of {allocation}")
        if address + size_bytes > allocation.address + allocation.size_bytes:
            raise Misuse(f"{size_bytes} bytes at {address:#x} reach beyond {allocation}")
        return allocation

    def on_device(self, address: int, size_bytes: int, ordinal: int) -> NDArray[np.uint8]:
        """A view of memory of this device. Raises Misuse where it is not that."""
        allocation = self.find(address, size_bytes)
        if allocation.ordinal != ordinal:
            raise Misuse(f"{allocation} is used on device {ordinal}")
        return allocation.view(address, size_bytes)

    def pinned(self, address: int, size_bytes: int) -> NDArray[np.uint8]:
        """A view of pinned memory. Raises Misuse where it is not that."""
        try:
            allocation = self.find(address, size_bytes)
        except Misuse as error:
            raise Misuse(f"{error}: an asynchronous copy needs pinned memory of the host") from None
        if allocation.ordinal != PINNED:
            raise Misuse(f"{allocation} is used as memory of the host")
        return allocation.view(address, size_bytes)


def host_address(value: Any) -> int:
    """What cuda-python makes of an argument that names memory of the host: a number, or an object's buffer."""
    if hasattr(value, "__int__") and not hasattr(value, "__array_interface__"):
        return int(value)
    if isinstance(value, np.integer):
        return int(value)
    return int(np.frombuffer(value, np.uint8).ctypes.data)
