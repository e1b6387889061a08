"""NCCL's library as its header (2.32) declares it, which only writes down what it was asked.

Functions are C functions of the header's types, so that a binding with other ones passes them other values.
"""

import ctypes
from typing import Any

Comm = ctypes.c_void_p
Stream = ctypes.c_void_p
Result = ctypes.c_int
Buffer = ctypes.c_void_p
Count = ctypes.c_size_t
Enum = ctypes.c_int


class ncclUniqueId(ctypes.Structure):  # noqa: N801 - NCCL's name
    _fields_ = (("internal", ctypes.c_ubyte * 128),)


PROTOTYPES: dict[str, tuple[Any, ...]] = {
    "ncclGetUniqueId": (ctypes.POINTER(ncclUniqueId),),
    "ncclCommInitRank": (ctypes.POINTER(Comm), ctypes.c_int, ncclUniqueId, ctypes.c_int),
    "ncclCommDestroy": (Comm,),
    "ncclCommAbort": (Comm,),
    "ncclCommGetAsyncError": (Comm, ctypes.POINTER(Result)),
    "ncclAllReduce": (Buffer, Buffer, Count, Enum, Enum, Comm, Stream),
    "ncclAllGather": (Buffer, Buffer, Count, Enum, Comm, Stream),
    "ncclSend": (Buffer, Count, Enum, ctypes.c_int, Comm, Stream),
    "ncclRecv": (Buffer, Count, Enum, ctypes.c_int, Comm, Stream),
}
WORDS = {1: b"unhandled cuda error", 6: b"remote process exited or there was a network error"}


class FakeNccl:
    """`refuse` names a call that fails with status 1. Communicators are numbered from 1 << 40 on."""

    def __init__(self, refuse: str = "", lacks: str = "", async_error: int = 0) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.refuse, self.async_error = refuse, async_error
        self._num_ids = self._num_communicators = 0
        for name, types in PROTOTYPES.items():
            if name != lacks:
                setattr(self, name, self._function(name, types))
        words = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int)
        self._texts = {status: ctypes.create_string_buffer(text) for status, text in WORDS.items()}
        self.ncclGetErrorString = words(lambda status: ctypes.addressof(self._texts[status]))

    def _function(self, name: str, types: tuple[Any, ...]) -> Any:
        def call(*arguments: Any) -> int:
            values = list(arguments)
            if name == "ncclGetUniqueId":
                self._num_ids += 1
                text = f"id {self._num_ids}".encode().ljust(127, b"\0") + b"!"  # zeros inside, and the last byte counts
                ctypes.memmove(arguments[0], text, 128)
                values = []
            elif name == "ncclCommInitRank":
                self._num_communicators += 1
                values = [arguments[1], bytes(arguments[2].internal), arguments[3]]
                arguments[0][0] = (1 << 40) + self._num_communicators
            elif name == "ncclCommGetAsyncError":
                values = [arguments[0]]
                arguments[1][0] = self.async_error
            self.calls.append((name, *values))
            return 1 if name == self.refuse else 0

        return ctypes.CFUNCTYPE(Result, *types)(call)

    def names(self) -> list[str]:
        return [call[0] for call in self.calls]
