"""NCCL's library for worker processes, whose ranks meet in files of a directory.

fake_packages/sitecustomize.py puts it in place.

A communicator is a folder, named by its unique id:

    join.R       rank R has called ncclCommInitRank
    all.N.R      what rank R gives to the collective N of all ranks; removed by R when all have come to N + 1
    send.N.R.S   what rank R has sent to S, their message N; removed by S

A call whose ranks are not all there raises Unfinished after a moment, and goes on when it is made again: as a real
device, it lets the host do other things meanwhile. After TIMEOUT_S it is an error that says who is missing.
"""

import ctypes
import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from precast.plugins.all_reduce.reference import all_reduce
from precast.plugins.all_reduce.schema import AllReduceAttributes
from tests.runtime.tensorrt.fake_cuda.errors import Unfinished

TIMEOUT_S = 20.0
_MOMENT_S = 0.05
_PAUSE_S = 0.0005
_DTYPES: dict[int, Any] = {6: np.float16, 9: ml_dtypes.bfloat16}
_SUM = 0

Array = NDArray[Any]


class MeetingError(RuntimeError):
    """A rank did not come."""


class _Function:
    """As ctypes has them: whoever binds one says what it takes."""

    def __init__(self, function: Callable[..., int | bytes]) -> None:
        self._function = function
        self.argtypes: Any = None
        self.restype: Any = None

    def __call__(self, *arguments: Any) -> int | bytes:
        assert self.argtypes is not None
        assert len(arguments) == len(self.argtypes)
        return self._function(*arguments)


class MeetingNccl:
    """The functions that precast.plugins.collectives.device.nccl binds."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._communicators: dict[int, _Communicator] = {}
        for name in ("GetUniqueId", "CommInitRank", "CommDestroy", "CommAbort", "CommGetAsyncError", "AllReduce"):
            setattr(self, f"nccl{name}", _Function(getattr(self, f"_{name}")))
        for name in ("AllGather", "Send", "Recv", "GetErrorString"):
            setattr(self, f"nccl{name}", _Function(getattr(self, f"_{name}")))

    def _GetUniqueId(self, unique_id: Any) -> int:  # noqa: N802 - NCCL's names, here and below
        ctypes.memmove(ctypes.addressof(unique_id._obj), os.urandom(128), 128)
        return 0

    def _CommInitRank(self, handle: Any, num_ranks: int, unique_id: Any, rank: int) -> int:  # noqa: N802
        name = hashlib.sha256(bytes(unique_id)).hexdigest()[:16]
        handle._obj.value = number = (1 << 40) + len(self._communicators)
        self._communicators[number] = _Communicator(self._folder / name, num_ranks, rank)
        return 0

    def _CommDestroy(self, handle: Any) -> int:  # noqa: N802
        del self._communicators[handle.value]
        return 0

    def _CommAbort(self, handle: Any) -> int:  # noqa: N802
        return self._CommDestroy(handle)

    def _CommGetAsyncError(self, handle: Any, status: Any) -> int:  # noqa: N802
        status._obj.value = 0 if handle.value in self._communicators else 5
        return 0

    def _GetErrorString(self, status: int) -> bytes:  # noqa: N802
        return b"invalid usage" if status == 5 else b"unknown"

    def _AllReduce(self, x: int, y: int, count: int, kind: int, op: int, handle: Any, stream: int) -> int:  # noqa: N802
        assert op == _SUM
        if (ranks := self._find(handle)) is not None:
            given = [each.view(_DTYPES[kind]) for each in ranks.meet(_bytes(x, 2 * count))]
            total = all_reduce([each.astype(np.float32) for each in given], AllReduceAttributes(ranks.num_ranks))
            _bytes(y, 2 * count)[:] = total.astype(_DTYPES[kind]).view(np.uint8)
        return 0

    def _AllGather(self, x: int, y: int, count: int, kind: int, handle: Any, stream: int) -> int:  # noqa: N802
        if (ranks := self._find(handle)) is not None:
            _bytes(y, 2 * count * ranks.num_ranks)[:] = np.concatenate(ranks.meet(_bytes(x, 2 * count)))
        return 0

    def _Send(self, x: int, count: int, kind: int, peer: int, handle: Any, stream: int) -> int:  # noqa: N802
        if (ranks := self._find(handle)) is not None:
            ranks.send(_bytes(x, 2 * count), peer)
        return 0

    def _Recv(self, y: int, count: int, kind: int, peer: int, handle: Any, stream: int) -> int:  # noqa: N802
        if (ranks := self._find(handle)) is not None:
            _bytes(y, 2 * count)[:] = ranks.receive(peer, 2 * count)
        return 0

    def _find(self, handle: Any) -> "_Communicator | None":
        """None where it was aborted since this was enqueued: that ends at once, and its output is anything."""
        return None if handle is None else self._communicators[handle.value]


class _Communicator:
    """One rank's place among those of a communicator."""

    def __init__(self, folder: Path, num_ranks: int, rank: int) -> None:
        """Returns when all ranks have done it."""
        self._folder, self.num_ranks, self._rank = folder, num_ranks, rank
        self._num_met = 0
        self._messages: Counter[tuple[int, int]] = Counter()
        self._since: float | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self._write("join", f".{rank}", b"")
        while not self._have_joined():
            pass

    def _have_joined(self) -> bool:
        try:
            self._wait([f"join.{rank}" for rank in range(self.num_ranks)])
        except Unfinished:
            return False
        return True

    def meet(self, x: Array) -> list[Array]:
        """All ranks' bytes."""
        number = self._num_met
        self._write(f"all.{number}", f".{self._rank}", x.tobytes())
        given = self._wait([f"all.{number}.{rank}" for rank in range(self.num_ranks)])
        if len({len(each) for each in given}) != 1:
            raise MeetingError(f"ranks bring {[len(each) for each in given]} bytes to a collective")
        if number:
            (self._folder / f"all.{number - 1}.{self._rank}").unlink()
        self._num_met += 1
        return given

    def send(self, x: Array, peer: int) -> None:
        self._write(f"send.{self._count(self._rank, peer)}", f".{self._rank}.{peer}", x.tobytes())

    def receive(self, peer: int, num_bytes: int) -> Array:
        name = f"send.{self._messages[peer, self._rank]}.{peer}.{self._rank}"
        (data,) = self._wait([name])
        if len(data) != num_bytes:
            raise MeetingError(f"rank {peer} has sent {len(data)} bytes and not {num_bytes}")
        (self._folder / name).unlink()
        self._count(peer, self._rank)
        return data

    def _count(self, source: int, target: int) -> int:
        self._messages[source, target] += 1
        return self._messages[source, target] - 1

    def _write(self, name: str, end: str, data: bytes) -> None:
        """At once, or not at all; a second time, nothing."""
        path = self._folder / f"{name}{end}"
        if not path.exists():
            new = self._folder / f"new{end}"
            new.write_bytes(data)
            new.rename(path)

    def _wait(self, names: Sequence[str]) -> list[Array]:
        begin = time.monotonic()
        self._since = begin if self._since is None else self._since
        while missing := [name for name in names if not (self._folder / name).exists()]:
            now = time.monotonic()
            if now - self._since > TIMEOUT_S:
                raise MeetingError(
                    f"rank {self._rank} of {self.num_ranks} in a communicator waited {TIMEOUT_S:g} s for {missing}"
                )
            if now - begin > _MOMENT_S:
                raise Unfinished(f"waits for {missing}")
            time.sleep(_PAUSE_S)
        self._since = None
        return [np.frombuffer((self._folder / name).read_bytes(), np.uint8) for name in names]


def _bytes(address: int, num_bytes: int) -> Array:
    return np.ctypeslib.as_array((ctypes.c_uint8 * num_bytes).from_address(address))
