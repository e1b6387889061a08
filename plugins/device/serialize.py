"""A set of compiled kernels as bytes, as they travel in a field of a plugin. Format 1:

    magic        8 bytes       "PCKERNEL"
    version      uint32        1
    count        uint32        kernels that follow
    of each kernel
        name         text
        target       text          "sm_90"
        kind         text          "cubin" or "ptx"
        shared       uint32        bytes of dynamic shared memory
        warps        uint32
        parameters   uint32        how many follow
        of each parameter
            name     text
            c_type   text          "pointer", "int32", "int64", "float"
        code         uint64 length, then that many bytes

Text is a uint32 length and as many bytes of UTF-8. All integers are little-endian. Nothing is aligned and nothing
follows the last kernel.
"""

import struct
from collections.abc import Iterable

from precast.plugins.device.compiled_kernel import CompiledKernel, CompiledParameter

MAGIC = b"PCKERNEL"
VERSION = 1


def to_bytes(kernels: Iterable[CompiledKernel]) -> bytes:
    """The kernels in this format, in this order."""
    kernels = tuple(kernels)
    parts = [MAGIC, struct.pack("<II", VERSION, len(kernels))]
    for kernel in kernels:
        parts += [_text(kernel.name), _text(kernel.target), _text(kernel.kind)]
        parts.append(struct.pack("<III", kernel.shared_bytes, kernel.num_warps, len(kernel.parameters)))
        for parameter in kernel.parameters:
            parts += [_text(parameter.name), _text(parameter.c_type)]
        parts += [struct.pack("<Q", len(kernel.code)), kernel.code]
    return b"".join(parts)


def from_bytes(data: bytes) -> tuple[CompiledKernel, ...]:
    """Reads what to_bytes wrote. Raises ValueError that says what is wrong and where."""
    reader = _Reader(data)
    magic = reader.take(len(MAGIC), "magic")
    if magic != MAGIC:
        raise ValueError(f"compiled kernels: begins with {magic!r}, not {MAGIC!r}")
    version = reader.uint32("version")
    if version != VERSION:
        raise ValueError(f"compiled kernels: format {version}; this version of Precast reads format {VERSION}")
    kernels = tuple(_read_kernel(reader, f"kernel {i}") for i in range(reader.uint32("count")))
    if reader.num_left:
        raise ValueError(f"compiled kernels: {reader.num_left} bytes follow the last kernel")
    return kernels


def _read_kernel(reader: "_Reader", what: str) -> CompiledKernel:
    name = reader.text(f"name of {what}")
    what = f"{what}, {name!r}"
    target, kind = reader.text(f"target of {what}"), reader.text(f"kind of {what}")
    shared_bytes, num_warps = reader.uint32(f"shared bytes of {what}"), reader.uint32(f"warps of {what}")
    parameters = []
    for i in range(reader.uint32(f"number of parameters of {what}")):
        parameter_name = reader.text(f"name of parameter {i} of {what}")
        parameters.append(CompiledParameter(parameter_name, reader.text(f"type of parameter {i} of {what}")))
    code = reader.take(reader.uint64(f"code length of {what}"), f"code of {what}")
    return CompiledKernel(name, target, kind, code, shared_bytes, num_warps, tuple(parameters))


def _text(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack("<I", len(encoded)) + encoded


class _Reader:
    """Takes fields off the front; every one is checked against what is left before it is read."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    @property
    def num_left(self) -> int:
        return len(self._data) - self._position

    def take(self, size_bytes: int, what: str) -> bytes:
        if size_bytes > self.num_left:
            raise ValueError(
                f"compiled kernels: {what} takes {size_bytes} bytes at offset {self._position}, "
                f"{self.num_left} are left"
            )
        start = self._position
        self._position += size_bytes
        return self._data[start : self._position]

    def uint32(self, what: str) -> int:
        return int.from_bytes(self.take(4, what), "little")

    def uint64(self, what: str) -> int:
        return int.from_bytes(self.take(8, what), "little")

    def text(self, what: str) -> str:
        encoded = self.take(self.uint32(f"length of {what}"), what)
        try:
            return encoded.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"compiled kernels: {what} is not UTF-8: {encoded!r}") from error
