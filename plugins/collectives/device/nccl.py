"""NCCL's C library through ctypes: the functions that are used, with their signatures, and errors as exceptions.

The library is an argument, so that order and arguments of calls are tested without it. Any NCCL from 2.10 on, which has
bfloat16, is of use.
"""

import ctypes
import importlib.util
from pathlib import Path
from typing import Any

from precast.plugins.collectives.device.group import GroupError

LIBRARY = "libnccl.so.2"
UNIQUE_ID_BYTES = 128
TYPES = {"float16": 6, "bfloat16": 9}
"""ncclDataType_t."""
_SUM = 0
_SUCCESS = 0
_IN_PROGRESS = 7


class UniqueId(ctypes.Structure):
    """ncclUniqueId, which is passed by value. Its bytes may be zeros: c_ubyte, not c_char."""

    _fields_ = (("internal", ctypes.c_ubyte * UNIQUE_ID_BYTES),)


_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "ncclGetUniqueId": (ctypes.POINTER(UniqueId),),
    "ncclCommInitRank": (ctypes.POINTER(ctypes.c_void_p), ctypes.c_int, UniqueId, ctypes.c_int),
    "ncclCommDestroy": (ctypes.c_void_p,),
    "ncclCommAbort": (ctypes.c_void_p,),
    "ncclCommGetAsyncError": (ctypes.c_void_p, ctypes.POINTER(ctypes.c_int)),
    # x, y, count, type, operation, communicator, stream
    "ncclAllReduce": (
        *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int),
        *(ctypes.c_void_p, ctypes.c_void_p),
    ),
    # x, y, count, type, communicator, stream
    "ncclAllGather": (
        *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int),
        *(ctypes.c_void_p, ctypes.c_void_p),
    ),
    # x or y, count, type, peer, communicator, stream
    "ncclSend": (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p),
    "ncclRecv": (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p),
}
"""All return ncclResult_t, an int."""


def load_nccl() -> Any:
    """NCCL as its package has it, else as the system's loader finds it.

    Raises:
        GroupError: it is not installed, or cannot be loaded.
    """
    path = _packaged_library()
    try:
        return ctypes.CDLL(LIBRARY if path is None else str(path))
    except OSError as error:
        advice = "pip install nvidia-nccl-cu13" if path is None else "install that package again"
        raise GroupError(f"ranks on GPUs meet through NCCL, which cannot be loaded: {error}; {advice}") from error


def _packaged_library() -> Path | None:
    """The library of nvidia-nccl-cu13, or of a package that has it at the same place."""
    try:
        spec = importlib.util.find_spec("nvidia.nccl")
    except ModuleNotFoundError:  # there is no package nvidia at all
        return None
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    return next((path for folder in folders if (path := Path(folder, "lib", LIBRARY)).exists()), None)


def new_unique_id(library: Any) -> bytes:
    """What the ranks of a new communicator must agree on: one of them makes it, and gives it to the others.

    Raises:
        GroupError: NCCL refused.
    """
    unique_id = UniqueId()
    function = _bind(library, "ncclGetUniqueId")
    _check(library, function(ctypes.byref(unique_id)), "ncclGetUniqueId", "")
    return bytes(unique_id)


class Communicator:
    """Ranks that meet. Collectives are enqueued on a stream, which must be of the device that was current at the birth.

    All raise GroupError where NCCL refuses: it names the call, the rank, and what NCCL says.
    """

    def __init__(self, library: Any, unique_id: bytes, num_ranks: int, rank: int) -> None:
        """Returns when all ranks have called it. One after the other, in the same order on all ranks."""
        self._library = library
        self._functions = {name: _bind(library, name) for name in _SIGNATURES}
        self._where = f" on rank {rank} of {num_ranks}"
        self._handle: Any = ctypes.c_void_p()
        self._call(
            "ncclCommInitRank", ctypes.byref(self._handle), num_ranks, UniqueId.from_buffer_copy(unique_id), rank
        )

    def all_reduce(self, x: int, y: int, num_elements: int, dtype: str, stream: int) -> None:
        """Sums of `dtype`, in NCCL's order, rounded as often as NCCL does."""
        self._call("ncclAllReduce", x, y, num_elements, TYPES[dtype], _SUM, self._handle, stream)

    def all_gather(self, x: int, y: int, num_elements: int, dtype: str, stream: int) -> None:
        self._call("ncclAllGather", x, y, num_elements, TYPES[dtype], self._handle, stream)

    def send(self, x: int, num_elements: int, dtype: str, peer: int, stream: int) -> None:
        self._call("ncclSend", x, num_elements, TYPES[dtype], peer, self._handle, stream)

    def receive(self, y: int, num_elements: int, dtype: str, peer: int, stream: int) -> None:
        self._call("ncclRecv", y, num_elements, TYPES[dtype], peer, self._handle, stream)

    def check(self) -> None:
        """Raise GroupError for what went wrong since, on the device or another rank."""
        status = ctypes.c_int(_SUCCESS)
        self._call("ncclCommGetAsyncError", self._handle, ctypes.byref(status))
        if status.value != _IN_PROGRESS:
            _check(self._library, status.value, "a collective of NCCL", self._where)

    def close(self) -> None:
        """Give back what it holds, when all that was enqueued has ended. All ranks call it; again, it does nothing."""
        self._end("ncclCommDestroy")

    def abort(self) -> None:
        """End it at once, with all that still runs: after a failure, when another rank may be gone."""
        self._end("ncclCommAbort")

    def _end(self, name: str) -> None:
        if self._handle:
            handle, self._handle = self._handle, None
            self._call(name, handle)

    def _call(self, name: str, *arguments: object) -> None:
        _check(self._library, self._functions[name](*arguments), name, self._where)


def _bind(library: Any, name: str) -> Any:
    """A function with its signature. Raises GroupError where the library lacks it."""
    try:
        function = getattr(library, name)
    except AttributeError as error:
        raise GroupError(f"NCCL has no {name}: 2.10 or later is needed; pip install nvidia-nccl-cu13") from error
    function.argtypes, function.restype = _SIGNATURES[name], ctypes.c_int
    return function


def _check(library: Any, status: int, name: str, where: str) -> None:
    if status == _SUCCESS:
        return
    describe = library.ncclGetErrorString
    describe.argtypes, describe.restype = (ctypes.c_int,), ctypes.c_char_p
    words = (describe(status) or b"").decode(errors="replace")
    raise GroupError(f"{name}{where}: {words or f'error {status}'} (NCCL_DEBUG=WARN says more)")
