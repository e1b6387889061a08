"""Safetensors files, mapped.

The safetensors package is not used to read them: its NumPy interface copies every tensor and knows no
bfloat16, and its other frameworks are PyTorch, TensorFlow and JAX. The format is small and stable (8 bytes
of header length, a JSON header, the data), so it is read here, and checked as the package checks it: the
tests require both to accept and refuse the same files.
"""

import contextlib
import mmap
import os
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precast.checkpoints.errors import CorruptFileError, DuplicateTensorError, UnsupportedDtypeError, WeightFilesError
from precast.checkpoints.json_object import DuplicateKeyError, parse_json_object
from precast.checkpoints.tensor_info import NUMPY_DTYPES, TensorInfo

MAX_HEADER_BYTES = 100_000_000
"""The safetensors package refuses larger headers, and nobody needs them."""

ITEM_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
"""Every dtype of the format, with the bits of one element."""

DTYPE_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""Those that models are built from. Others are listed under the format's own name, and cannot be read."""


@dataclass(frozen=True)
class _Entry:
    """A tensor's bytes within the file: [start, stop)."""

    info: TensorInfo
    start: int
    stop: int


class SafetensorsFile:
    """One mapped file. Raises CorruptFileError, DuplicateTensorError, UnsupportedDtypeError or (where the
    system refuses it) WeightFilesError when it is opened; a file that opens has every byte of every tensor.

    Arrays that `tensor` returned stay valid after `close`: they keep the mapping.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map = _map(path)
        self._entries = _parse(path, self._map)

    def infos(self) -> dict[str, TensorInfo]:
        """Every tensor of the file, in the order of their data."""
        return {name: entry.info for name, entry in self._entries.items()}

    def tensor(self, name: str) -> NDArray[Any]:
        """A read-only view of the mapping; not aligned to its dtype if the file's header is not.

        Raises UnsupportedDtypeError for other dtypes than float32, bfloat16 and float16.
        """
        entry = self._entries[name]
        dtype = NUMPY_DTYPES.get(entry.info.dtype)
        if dtype is None:
            raise UnsupportedDtypeError(f"{self.path}: {name} is stored as {entry.info.dtype}, which is not supported")
        flat = np.frombuffer(self._map, dtype, prod(entry.info.shape), entry.start)
        return flat.reshape(entry.info.shape)

    def release(self, name: str) -> None:
        """Let the system take back the pages that reading a tensor made resident; reading them again is safe."""
        entry = self._entries[name]
        start = -(-entry.start // mmap.PAGESIZE) * mmap.PAGESIZE
        stop = entry.stop // mmap.PAGESIZE * mmap.PAGESIZE
        if start < stop:
            self._map.madvise(mmap.MADV_DONTNEED, start, stop - start)

    def close(self) -> None:
        """End the mapping, or leave it to end with the last array that views it."""
        self._entries = {}
        with contextlib.suppress(BufferError):  # such arrays are there
            self._map.close()


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 8:
                raise CorruptFileError(f"{path}: has {size} bytes, a safetensors file has at least 8")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise WeightFilesError(f"{path}: cannot be read: {error.strerror}") from error


def _parse(path: Path, data: mmap.mmap) -> dict[str, _Entry]:
    """The entries of a whole file, checked, in the order of their data."""
    header_bytes = int.from_bytes(data[:8], "little")
    if header_bytes > MAX_HEADER_BYTES:
        raise CorruptFileError(
            f"{path}: its first 8 bytes say that the header has {header_bytes} bytes, "
            f"more than the {MAX_HEADER_BYTES} of any safetensors file; is it one?"
        )
    data_start = 8 + header_bytes
    if data_start > len(data):
        raise CorruptFileError(
            f"{path}: truncated: the header ends at byte {data_start}, and the file has {len(data)}; download it again"
        )
    try:
        header = parse_json_object(data[8:data_start])
    except DuplicateKeyError as error:
        raise DuplicateTensorError(f"{path}: in the header {error}") from error
    except ValueError as error:
        raise CorruptFileError(f"{path}: the header is not valid JSON: {error}") from error
    _check_metadata(path, header.pop("__metadata__", None))
    entries = {name: _entry(path, name, value, data_start) for name, value in header.items()}
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)))
    _check_coverage(path, ordered, data_start, len(data))
    return ordered


def _check_metadata(path: Path, metadata: object) -> None:
    is_text_map = isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    if metadata is not None and not is_text_map:
        raise CorruptFileError(f"{path}: __metadata__ must map strings to strings")


def _entry(path: Path, name: str, value: object, data_start: int) -> _Entry:
    """One tensor of the header, checked by itself."""
    if not isinstance(value, dict):
        raise CorruptFileError(f"{path}: {name}: the header has no object for it")
    dtype, shape, offsets = value.get("dtype"), _counts(value.get("shape")), _counts(value.get("data_offsets"))
    if not isinstance(dtype, str) or shape is None or offsets is None or len(offsets) != 2:
        raise CorruptFileError(f"{path}: {name}: dtype, shape or data_offsets is missing or malformed: {value}")
    if dtype not in ITEM_BITS:
        raise UnsupportedDtypeError(f"{path}: {name} is stored as {dtype!r}, which is no dtype of the format")
    begin, end = offsets
    bits = prod(shape) * ITEM_BITS[dtype]
    if begin > end or (end - begin) * 8 != bits:
        raise CorruptFileError(
            f"{path}: {name}: {dtype} {shape} takes {bits / 8:g} bytes, its data_offsets {offsets} span {end - begin}"
        )
    info = TensorInfo(DTYPE_NAMES.get(dtype, dtype), tuple(shape), end - begin)
    return _Entry(info, data_start + begin, data_start + end)


def _counts(values: object) -> list[int] | None:
    """`values` if it is a list of integers that are not negative."""
    return values if isinstance(values, list) and all(type(item) is int and item >= 0 for item in values) else None


def _check_coverage(path: Path, entries: dict[str, _Entry], data_start: int, size: int) -> None:
    """Tensors, in the order of their data, must cover it without gaps, overlaps or a rest."""
    end = data_start
    for name, entry in entries.items():
        if entry.start != end:
            problem = (
                "overlaps the tensor before it" if entry.start < end else "leaves a gap after the tensor before it"
            )
            raise CorruptFileError(
                f"{path}: {name}: its data starts at byte {entry.start} and {problem}, at byte {end}"
            )
        end = entry.stop
    if end > size:
        raise CorruptFileError(f"{path}: truncated: it has {size} bytes, its tensors need {end}; download it again")
    if end < size:
        raise CorruptFileError(f"{path}: has {size} bytes, {size - end} more than its tensors need")
