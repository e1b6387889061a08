"""The header and the index of weights.bin, the packed tensors of one rank. docs/engine_format.md is the authority.

    header, 64 bytes | index records | zeros to a multiple of 2 MiB | tensors, each at a multiple of 64

weights_writer.py writes the file, weights_reader.py reads its index, the native runtime maps it.
"""

import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from precast.checkpoints.engine_errors import quote

MAGIC = b"PRECASTW"
WEIGHTS_VERSION = 1
HEADER_BYTES = 64
DATA_ALIGNMENT = 2 << 20
TENSOR_ALIGNMENT = 64
MAX_INDEX_BYTES = 64 << 20
MAX_NAME_BYTES = 1024
MAX_ID_BYTES = 64
MAX_RANK = 8
PLAIN_LAYOUT = "plain"

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "uint8": 1, "int32": 4, "int64": 8}

MAX_INT64 = (1 << 63) - 1
HEADER = struct.Struct("<8sIIQQQI16x")
"""magic, version, tensor_count, index_size, data_offset, file_size, CRC-32 of the index; the CRC-32 of this follows."""
RECORD = struct.Struct("<IIII")
"""name_len, dtype_len, layout_len, rank; then come the shape, PLACE and the three texts."""
PLACE = struct.Struct("<QQ")
"""offset, size."""


def round_up(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment


@dataclass(frozen=True)
class TensorSpec:
    """A tensor as the index describes it, without its place. The data is dense, row-major and little-endian."""

    name: str
    dtype: str
    """A key of DTYPE_BYTES."""
    shape: tuple[int, ...]
    """Every extent >= 1; () for a scalar; a packed weight is uint8 [size_bytes]."""
    layout: str = PLAIN_LAYOUT
    """"plain", or the id of a weight layout, e.g. "x16k2.bf16/1"."""

    def __post_init__(self) -> None:
        for field, text, limit in (
            ("name", self.name, MAX_NAME_BYTES),
            ("layout", self.layout, MAX_ID_BYTES),
        ):
            if not all("!" <= character <= "~" for character in text):
                raise ValueError(f"{field} must be printable ASCII without spaces, got {quote(text)}")
            if not 1 <= len(text) <= limit:
                raise ValueError(f"{field}_len must be from 1 to {limit}, got {len(text)}")
        if self.dtype not in DTYPE_BYTES:
            raise ValueError(f"tensor {quote(self.name)}: the dtype {quote(self.dtype)} is unknown")
        if len(self.shape) > MAX_RANK:
            raise ValueError(f"rank must be from 0 to {MAX_RANK}, got {len(self.shape)}")
        for axis, extent in enumerate(self.shape):
            if extent < 1:
                raise ValueError(
                    f"tensor {quote(self.name)}: the extent of axis {axis} must be at least 1, got {extent}"
                )
        if self.size_bytes > MAX_INT64:
            raise ValueError(f"tensor {quote(self.name)}: its shape needs more than {MAX_INT64} bytes")

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class TensorEntry:
    """A tensor and where its bytes are."""

    spec: TensorSpec
    offset: int
    """In bytes from the start of the file; a multiple of 64."""

    @property
    def end(self) -> int:
        return self.offset + self.spec.size_bytes


@dataclass(frozen=True)
class WeightsIndex:
    """The index of a whole file. `tensors` ascend in offset; their names are distinct."""

    tensors: tuple[TensorEntry, ...]
    data_offset: int
    file_size: int

    def find(self, name: str) -> TensorEntry:
        """Raises KeyError."""
        for tensor in self.tensors:
            if tensor.spec.name == name:
                return tensor
        raise KeyError(name)


def plan_index(specs: Sequence[TensorSpec]) -> WeightsIndex:
    """Places for `specs`, in this order. Raises ValueError where a name occurs twice or the index is too large."""
    names = set[str]()
    for spec in specs:
        if spec.name in names:
            raise ValueError(f"tensor {quote(spec.name)} is in the index twice")
        names.add(spec.name)
    index_bytes = sum(_record_bytes(spec) for spec in specs)
    if index_bytes > MAX_INDEX_BYTES:
        raise ValueError(f"index_size must be at most {MAX_INDEX_BYTES}, got {index_bytes}")
    data_offset = end = round_up(HEADER_BYTES + index_bytes, DATA_ALIGNMENT)
    tensors = []
    for spec in specs:
        tensors.append(TensorEntry(spec, round_up(end, TENSOR_ALIGNMENT)))
        end = tensors[-1].end
    return WeightsIndex(tuple(tensors), data_offset, file_size=end)


def encode_index(index: WeightsIndex) -> bytes:
    """The file's first bytes: header and index."""
    records = b"".join(_encode_record(tensor) for tensor in index.tensors)
    header = HEADER.pack(
        MAGIC,
        WEIGHTS_VERSION,
        len(index.tensors),
        len(records),
        index.data_offset,
        index.file_size,
        zlib.crc32(records),
    )
    return header + struct.pack("<I", zlib.crc32(header)) + records


def _record_bytes(spec: TensorSpec) -> int:
    text_bytes = len(spec.name) + len(spec.dtype) + len(spec.layout)
    return round_up(RECORD.size + 8 * len(spec.shape) + PLACE.size + text_bytes, 8)


def _encode_record(tensor: TensorEntry) -> bytes:
    spec = tensor.spec
    texts = [text.encode("ascii") for text in (spec.name, spec.dtype, spec.layout)]
    record = (
        RECORD.pack(*map(len, texts), len(spec.shape))
        + struct.pack(f"<{len(spec.shape)}Q", *spec.shape)
        + PLACE.pack(tensor.offset, spec.size_bytes)
        + b"".join(texts)
    )
    return record.ljust(_record_bytes(spec), b"\0")
