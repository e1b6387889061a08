"""Reads the index of a weights.bin, with the checks and the words of runtime/native/src/weights_index.cpp."""

import os
import struct
import zlib
from pathlib import Path

from precast.checkpoints.engine_errors import CorruptEngineError, EngineIOError, UnsupportedEngineError, quote
from precast.checkpoints.weights_index import (
    DATA_ALIGNMENT,
    HEADER,
    HEADER_BYTES,
    MAGIC,
    MAX_ID_BYTES,
    MAX_INDEX_BYTES,
    MAX_NAME_BYTES,
    MAX_RANK,
    PLACE,
    RECORD,
    TENSOR_ALIGNMENT,
    WEIGHTS_VERSION,
    TensorEntry,
    TensorSpec,
    WeightsIndex,
    round_up,
)

_COUNT_LIMITS = (
    ("name_len", 1, MAX_NAME_BYTES),
    ("dtype_len", 1, MAX_ID_BYTES),
    ("layout_len", 1, MAX_ID_BYTES),
    ("rank", 0, MAX_RANK),
)


def read_weights_index(path: str | os.PathLike[str]) -> WeightsIndex:
    """Read and check the header and the index; the tensors' own bytes are not read.

    Raises EngineIOError, CorruptEngineError, UnsupportedEngineError.
    """
    source = str(path)
    try:
        with Path(path).open("rb") as file:
            file_size = os.fstat(file.fileno()).st_size
            tensor_count, index_size, data_offset, index_crc32 = _read_header(
                file.read(HEADER_BYTES), file_size, source
            )
            index = file.read(index_size)
    except OSError as error:
        raise EngineIOError(f"{source}: cannot read it: {error.strerror}") from error
    _check_crc32(index_crc32, index, "index", source)
    tensors = _IndexReader(index, data_offset, file_size, source).read(tensor_count)
    return WeightsIndex(tensors, data_offset, file_size)


def _read_header(start: bytes, file_size: int, source: str) -> tuple[int, int, int, int]:
    """tensor_count, index_size, data_offset, index_crc32."""
    if len(start) < HEADER_BYTES:
        raise CorruptEngineError(f"{source}: is {file_size} bytes, less than its header of {HEADER_BYTES}")
    if not start.startswith(MAGIC):
        got = quote(start[: len(MAGIC)].decode("utf-8", "surrogateescape"))
        raise CorruptEngineError(f'{source}: not a weights file: it must start with "PRECASTW", got {got}')
    _check_crc32(int.from_bytes(start[60:64], "little"), start[:60], "header", source)
    _, version, tensor_count, index_size, data_offset, stored_size, index_crc32 = HEADER.unpack(start[:60])
    if version != WEIGHTS_VERSION:
        raise UnsupportedEngineError(
            f"{source}: weights version {version}, this precast reads {WEIGHTS_VERSION}: "
            "update precast or rebuild the engine"
        )
    if stored_size != file_size:
        raise CorruptEngineError(
            f"{source}: is {file_size} bytes, its header says {stored_size}: the copy was cut short; "
            "copy the engine again or rebuild it"
        )
    if index_size > MAX_INDEX_BYTES:
        raise CorruptEngineError(f"{source}: index_size must be at most {MAX_INDEX_BYTES}, got {index_size}")
    index_end = HEADER_BYTES + index_size
    if data_offset % DATA_ALIGNMENT or not index_end <= data_offset <= file_size:
        raise CorruptEngineError(
            f"{source}: data_offset must be a multiple of {DATA_ALIGNMENT} from {index_end} to {file_size}, "
            f"got {data_offset}"
        )
    return tensor_count, index_size, data_offset, index_crc32


def _check_crc32(stored: int, data: bytes, what: str, source: str) -> None:
    computed = zlib.crc32(data)
    if stored != computed:
        raise CorruptEngineError(
            f"{source}: the {what} is damaged (its CRC-32 is {computed}, the file says {stored}): "
            "copy the engine again or rebuild it"
        )


class _IndexReader:
    """Reads the records one behind the other."""

    def __init__(self, index: bytes, data_offset: int, file_size: int, source: str) -> None:
        self._index = index
        self._file_size = file_size
        self._source = source
        self._position = 0
        self._number = 0
        self._data_end = data_offset

    def read(self, tensor_count: int) -> tuple[TensorEntry, ...]:
        tensors = []
        names = set[str]()
        for self._number in range(tensor_count):
            tensor = self._read_record()
            if tensor.spec.name in names:
                raise self._error(f"tensor {quote(tensor.spec.name)} is in the index twice")
            names.add(tensor.spec.name)
            tensors.append(tensor)
        if self._position != len(self._index):
            raise self._error(
                f"the index is {len(self._index)} bytes, its {tensor_count} records end after {self._position}"
            )
        return tuple(tensors)

    def _error(self, complaint: str) -> CorruptEngineError:
        return CorruptEngineError(f"{self._source}: {complaint}")

    def _record_error(self, complaint: str) -> CorruptEngineError:
        return self._error(f"record {self._number} of the index: {complaint}")

    def _need(self, size_bytes: int) -> None:
        left = len(self._index) - self._position
        if size_bytes > left:
            raise self._record_error(f"needs {size_bytes} bytes, the index has {left} left")

    def _read_record(self) -> TensorEntry:
        self._need(RECORD.size)
        *text_lengths, rank = RECORD.unpack_from(self._index, self._position)
        self._check_counts([*text_lengths, rank])
        place_at = self._position + RECORD.size + 8 * rank
        record_bytes = round_up(RECORD.size + 8 * rank + PLACE.size + sum(text_lengths), 8)
        self._need(record_bytes)
        shape = struct.unpack_from(f"<{rank}Q", self._index, place_at - 8 * rank)
        offset, size_bytes = PLACE.unpack_from(self._index, place_at)
        spec = self._read_spec(place_at + PLACE.size, text_lengths, shape)
        tensor = TensorEntry(spec, offset)
        self._check_place(tensor, size_bytes)
        self._position += record_bytes
        self._data_end = tensor.end
        return tensor

    def _check_counts(self, counts: list[int]) -> None:
        for value, (field, minimum, maximum) in zip(counts, _COUNT_LIMITS, strict=True):
            if not minimum <= value <= maximum:
                raise self._record_error(f"{field} must be from {minimum} to {maximum}, got {value}")

    def _read_spec(self, start: int, text_lengths: list[int], shape: tuple[int, ...]) -> TensorSpec:
        texts = []
        for length in text_lengths:
            texts.append(self._index[start : start + length].decode("utf-8", "surrogateescape"))
            start += length
        name, dtype, layout = texts
        try:
            return TensorSpec(name, dtype, shape, layout)
        except ValueError as error:
            raise self._record_error(str(error)) from error

    def _check_place(self, tensor: TensorEntry, size_bytes: int) -> None:
        name, offset = quote(tensor.spec.name), tensor.offset
        if tensor.spec.size_bytes != size_bytes:
            raise self._record_error(
                f"tensor {name}: its shape needs {tensor.spec.size_bytes} bytes, its size is {size_bytes}"
            )
        if offset % TENSOR_ALIGNMENT:
            raise self._record_error(
                f"tensor {name}: its offset must be a multiple of {TENSOR_ALIGNMENT}, got {offset}"
            )
        if offset < self._data_end:
            raise self._record_error(
                f"tensor {name}: its offset must be at least {self._data_end}, where the bytes "
                f"before it end, got {offset}"
            )
        if tensor.end > self._file_size:
            raise self._record_error(
                f"tensor {name}: its {size_bytes} bytes at offset {offset} end behind the file's {self._file_size}"
            )
