"""Writes a weights.bin: the index first, then the tensors in its order, one at a time, hashed on the way."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from precast.checkpoints.durable_files import os_errors_named, reserve, write_all
from precast.checkpoints.engine_manifest import FileEntry
from precast.checkpoints.weights_index import TensorSpec, encode_index, plan_index

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CHUNK_BYTES = 16 << 20


class WeightsWriter:
    """Writes one new file. Nothing of a tensor is kept after `write`, so memory is bounded by the largest one.

    A context manager: leaving it closes the file, and without an exception finishes it first. An OSError carries the
    file's name.
    """

    def __init__(self, path: Path, specs: Sequence[TensorSpec]) -> None:
        """Create the file, reserve its whole size, write the index. Raises ValueError for bad specs, OSError."""
        self.path = path
        self.index = plan_index(specs)
        self.entry: FileEntry | None = None
        """Size and SHA-256; None until the file is finished."""
        self._offsets = {tensor.spec.name: tensor.offset for tensor in self.index.tensors}
        self._remaining = list(reversed(self.index.tensors))
        self._hash = hashlib.sha256()
        self._position = 0
        self._file = path.open("xb", buffering=0)
        try:
            with os_errors_named(path):
                reserve(self._file, self.index.file_size)
            self._append(encode_index(self.index))
        except BaseException:
            self._file.close()
            raise

    def offset(self, name: str) -> int:
        """Where the tensor's bytes will start in the file, a multiple of 64. Known before anything is written."""
        return self._offsets[name]

    def write(self, name: str, array: "NDArray[Any]") -> None:
        """Append the next tensor of the index. `array` has its spec's dtype and shape.

        Raises ValueError where it is not the next one or does not fit its spec, OSError.
        """
        if not self._remaining or self._remaining[-1].spec.name != name:
            expected = repr(self._remaining[-1].spec.name) if self._remaining else "none"
            raise ValueError(f"tensors are written in the order of their specs: expected {expected}, got {name!r}")
        tensor = self._remaining[-1]
        if (array.dtype.name, array.shape) != (
            tensor.spec.dtype,
            tensor.spec.shape,
        ) or not array.dtype.isnative:
            expected = f"{tensor.spec.dtype}{list(tensor.spec.shape)}"
            raise ValueError(f"tensor {name!r} must be {expected}, got {array.dtype}{list(array.shape)}")
        self._pad(tensor.offset)
        octets = array.ravel().view("uint8").data  # ravel copies where the array is not dense
        for start in range(0, len(octets), _CHUNK_BYTES):
            self._append(octets[start : start + _CHUNK_BYTES])
        self._remaining.pop()

    def finish(self) -> FileEntry:
        """Close the complete file. Raises ValueError where a tensor was not written, OSError."""
        if self._remaining:
            raise ValueError(f"{self.path}: tensor {self._remaining[-1].spec.name!r} was not written")
        self._pad(self.index.file_size)
        self._file.close()
        self.entry = FileEntry(self._position, self._hash.hexdigest())
        return self.entry

    def __enter__(self) -> "WeightsWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None and self.entry is None:
                self.finish()
        finally:
            self._file.close()

    def _append(self, data: bytes | memoryview) -> None:
        with os_errors_named(self.path):
            write_all(self._file, data)
        self._hash.update(data)
        self._position += len(data)

    def _pad(self, offset: int) -> None:
        self._append(bytes(offset - self._position))
