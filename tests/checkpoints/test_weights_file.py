import errno
import hashlib
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from precast.checkpoints import weights_writer
from precast.checkpoints.engine_errors import CorruptEngineError, EngineIOError, UnsupportedEngineError
from precast.checkpoints.weights_index import DTYPE_BYTES, TensorSpec, encode_index, plan_index
from precast.checkpoints.weights_reader import read_weights_index
from precast.checkpoints.weights_writer import WeightsWriter
from tests.checkpoints.tiny_engine import TENSORS

MIB = 1 << 20
U64 = 1 << 64


def write_tiny(path: Path) -> Path:
    with WeightsWriter(path, list(TENSORS)) as writer:
        for spec, array in TENSORS.items():
            writer.write(spec.name, array)
    return path


def record(name: bytes, dtype: bytes, layout: bytes, shape: tuple[int, ...], offset: int, size: int) -> bytes:
    """One record, as the page on the format describes it."""
    lengths = struct.pack("<IIII", len(name), len(dtype), len(layout), len(shape))
    data = lengths + struct.pack(f"<{len(shape) + 2}Q", *shape, offset, size) + name + dtype + layout
    return data + b"\0" * (-len(data) % 8)


def file_of(records: bytes, **fields: int) -> bytes:
    """A whole file around an index, with right checksums; `fields` replace header fields that would be right."""
    right = {
        "version": 1,
        "tensor_count": 1,
        "index_size": len(records),
        "data_offset": 2 * MIB,
        "file_size": 2 * MIB + 64,
    }
    values = [*(right | fields).values()]
    header = b"PRECASTW" + struct.pack("<IIQQQI16x", *values, zlib.crc32(records))
    data = header + struct.pack("<I", zlib.crc32(header)) + records
    return data + b"\0" * (2 * MIB + 64 - len(data))


def test_the_bytes_are_those_of_the_page(tmp_path: Path) -> None:
    records = record(b"norm.weight", b"float32", b"plain", (3, 5), 2 * MIB, 60)
    records += record(b"head.weight", b"uint8", b"x16k1.f32/1", (100,), 2 * MIB + 64, 100)
    file_size = 2 * MIB + 164
    expected = file_of(records, tensor_count=2, file_size=file_size)[: 2 * MIB]
    expected += np.arange(15, dtype="<f4").tobytes() + bytes(4) + bytes(range(100))
    assert write_tiny(tmp_path / "weights.bin").read_bytes() == expected


def test_the_entry_is_that_of_the_file(tmp_path: Path) -> None:
    with WeightsWriter(tmp_path / "w", list(TENSORS)) as writer:
        for spec, array in TENSORS.items():
            writer.write(spec.name, array)
    data = (tmp_path / "w").read_bytes()
    assert writer.entry is not None
    assert (writer.entry.size, writer.entry.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_a_file_without_tensors(tmp_path: Path) -> None:
    with WeightsWriter(tmp_path / "w", []):
        pass
    index = read_weights_index(tmp_path / "w")
    assert (index.tensors, index.data_offset, index.file_size) == ((), 2 * MIB, 2 * MIB)


NUMPY_DTYPES = {name: np.dtype(getattr(ml_dtypes, name, None) or name) for name in DTYPE_BYTES}
NAMES = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=20)
SPECS = st.builds(
    TensorSpec,
    NAMES,
    st.sampled_from(sorted(DTYPE_BYTES)),
    st.lists(st.integers(1, 5), max_size=4).map(tuple),
    st.sampled_from(["plain", "x16k2.bf16/1"]),
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(SPECS, max_size=6, unique_by=lambda spec: spec.name), st.randoms(use_true_random=False))
def test_round_trip(tmp_path: Path, specs: list[TensorSpec], random: Any) -> None:
    path = tmp_path / "w"
    path.unlink(missing_ok=True)
    contents = [random.randbytes(spec.size_bytes) for spec in specs]
    with WeightsWriter(path, specs) as writer:
        for spec, content in zip(specs, contents, strict=True):
            writer.write(spec.name, np.frombuffer(content, NUMPY_DTYPES[spec.dtype]).reshape(spec.shape))
    index = read_weights_index(path)
    assert [tensor.spec for tensor in index.tensors] == specs
    data = path.read_bytes()
    assert [data[tensor.offset : tensor.end] for tensor in index.tensors] == contents
    assert all(tensor.offset % 64 == 0 and tensor.offset == writer.offset(tensor.spec.name) for tensor in index.tensors)
    assert index.data_offset % (2 * MIB) == 0
    assert data[len(encode_index(index)) : index.data_offset].strip(b"\0") == b""


def test_a_large_index_moves_the_data(tmp_path: Path) -> None:
    index = plan_index([TensorSpec(f"{i:01000d}", "uint8", (1,)) for i in range(2100)])
    assert index.data_offset == 4 * MIB
    (tmp_path / "w").write_bytes(encode_index(index).ljust(index.file_size, b"\0"))
    assert read_weights_index(tmp_path / "w") == index


@contextmanager
def changed_byte(path: Path, position: int, mask: int) -> Iterator[None]:
    with path.open("r+b") as file:
        for _ in "do", "undo":
            file.seek(position)
            (value,) = file.read(1)
            file.seek(position)
            file.write(bytes([value ^ mask]))
            file.flush()
            if _ == "do":
                yield


def test_every_damaged_byte_of_header_and_index_is_found(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "w")
    num_bytes = len(encode_index(read_weights_index(path)))
    for position in range(num_bytes):
        for mask in 1, 0x80, 0xFF:
            with changed_byte(path, position, mask), pytest.raises(CorruptEngineError) as caught:
                read_weights_index(path)
            assert str(caught.value).startswith(f"{path}: ")
    read_weights_index(path)


def test_every_truncation_is_found(tmp_path: Path) -> None:
    whole = write_tiny(tmp_path / "w").read_bytes()
    for length in [*range(300), 2 * MIB - 1, 2 * MIB, len(whole) - 1]:
        (tmp_path / "short").write_bytes(whole[:length])
        with pytest.raises(CorruptEngineError, match=f"is {length} bytes"):
            read_weights_index(tmp_path / "short")


def refusal(tmp_path: Path, data: bytes) -> str:
    path = tmp_path / "hostile.bin"
    path.write_bytes(data)
    with pytest.raises(CorruptEngineError) as caught:
        read_weights_index(path)
    return str(caught.value).removeprefix(f"{path}: ")


START = 2 * MIB
END = START + 64


def one(
    name: bytes = b"a",
    dtype: bytes = b"float32",
    layout: bytes = b"plain",
    shape: tuple[int, ...] = (4, 4),
    offset: int = START,
    size: int = 64,
) -> bytes:
    return record(name, dtype, layout, shape, offset, size)


SIZE = len(one())
DATA_OFFSET = f"data_offset must be a multiple of {START} from {64 + SIZE} to {END}, got"
CUT_SHORT = "the copy was cut short; copy the engine again or rebuild it"


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"index_size": U64 - 1}, f"index_size must be at most {64 * MIB}, got {U64 - 1}"),
        ({"index_size": U64 - 64}, f"index_size must be at most {64 * MIB}, got {U64 - 64}"),
        ({"index_size": START}, f"data_offset must be a multiple of {START} from {START + 64} to {END}, got {START}"),
        ({"data_offset": 0}, f"{DATA_OFFSET} 0"),
        ({"data_offset": MIB}, f"{DATA_OFFSET} {MIB}"),
        ({"data_offset": 2 * START}, f"{DATA_OFFSET} {2 * START}"),
        ({"data_offset": U64 - START}, f"{DATA_OFFSET} {U64 - START}"),
        ({"file_size": 5}, f"is {END} bytes, its header says 5: {CUT_SHORT}"),
        ({"file_size": U64 - 1}, f"is {END} bytes, its header says {U64 - 1}: {CUT_SHORT}"),
        ({"tensor_count": 0}, f"the index is {SIZE} bytes, its 0 records end after 0"),
        ({"tensor_count": 2}, "record 1 of the index: needs 16 bytes, the index has 0 left"),
        ({"tensor_count": (1 << 32) - 1}, "record 1 of the index: needs 16 bytes, the index has 0 left"),
    ],
)
def test_hostile_headers(tmp_path: Path, fields: dict[str, int], complaint: str) -> None:
    assert refusal(tmp_path, file_of(one(), **fields)) == complaint


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    complaint = 'not a weights file: it must start with "PRECASTW", got "GGUF\\x00\\x00\\x00\\x00"'
    assert refusal(tmp_path, b"GGUF" + bytes(100)) == complaint


COUNTS = struct.Struct("<IIII")
U32_MAX = (1 << 32) - 1
NAME = "printable ASCII without spaces"


@pytest.mark.parametrize(
    ("records", "complaint"),
    [
        (one()[:-8], f"needs {SIZE} bytes, the index has {SIZE - 8} left"),
        (one()[:12], "needs 16 bytes, the index has 12 left"),
        (COUNTS.pack(0, 1, 1, 0), "name_len must be from 1 to 1024, got 0"),
        (COUNTS.pack(U32_MAX, 1, 1, 0), f"name_len must be from 1 to 1024, got {U32_MAX}"),
        (COUNTS.pack(1, 65, 1, 0), "dtype_len must be from 1 to 64, got 65"),
        (COUNTS.pack(1, 1, 0, 0), "layout_len must be from 1 to 64, got 0"),
        (COUNTS.pack(1, 1, 1, U32_MAX), f"rank must be from 0 to 8, got {U32_MAX}"),
        (COUNTS.pack(1024, 64, 64, 8), "needs 1248 bytes, the index has 16 left"),
        (one(name=b"a\0b"), f'name must be {NAME}, got "a\\x00b"'),
        (one(name=b"\xff"), f'name must be {NAME}, got "\\xff"'),
        (one(layout=b"pl in"), f'layout must be {NAME}, got "pl in"'),
        (one(dtype=b"float33"), 'tensor "a": the dtype "float33" is unknown'),
        (one(shape=(0, 4), size=0), 'tensor "a": the extent of axis 0 must be at least 1, got 0'),
        (one(shape=(1 << 63, 1 << 63)), f'tensor "a": its shape needs more than {(1 << 63) - 1} bytes'),
        (one(shape=(1 << 62, 4), size=0), f'tensor "a": its shape needs more than {(1 << 63) - 1} bytes'),
        (one(size=60), 'tensor "a": its shape needs 64 bytes, its size is 60'),
        (one(offset=START + 4), f'tensor "a": its offset must be a multiple of 64, got {START + 4}'),
        (one(offset=64), f'tensor "a": its offset must be at least {START}, where the bytes before it end, got 64'),
        (one(offset=END), f'tensor "a": its 64 bytes at offset {END} end behind the file\'s {END}'),
        (one(offset=U64 - 64), f'tensor "a": its 64 bytes at offset {U64 - 64} end behind the file\'s {END}'),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_hostile_records(tmp_path: Path, records: bytes, complaint: str) -> None:
    assert refusal(tmp_path, file_of(records)) == f"record 0 of the index: {complaint}"


def test_overlaps_and_twins(tmp_path: Path) -> None:
    overlap = one() + one(name=b"b", dtype=b"uint8", shape=(1,), size=1)
    assert refusal(tmp_path, file_of(overlap, tensor_count=2)) == (
        f'record 1 of the index: tensor "b": its offset must be at least {END}, '
        f"where the bytes before it end, got {START}"
    )
    twins = one() + one(dtype=b"uint8", shape=(1,), offset=END, size=1)
    data = file_of(twins, tensor_count=2, file_size=END + 1) + b"\0"
    assert refusal(tmp_path, data) == 'tensor "a" is in the index twice'


def test_another_version_is_unsupported_not_damaged(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(file_of(one(), version=2))
    with pytest.raises(UnsupportedEngineError, match="weights version 2, this precast reads 1: update precast"):
        read_weights_index(tmp_path / "w")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(EngineIOError, match=r"absent: cannot read it: No such file or directory"):
        read_weights_index(tmp_path / "absent")
    with pytest.raises(EngineIOError, match="cannot read it: Is a directory"):
        read_weights_index(tmp_path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TensorSpec("a b", "uint8", (1,)), "name must be printable ASCII"),
        (lambda: TensorSpec("a", "complex64", (1,)), 'the dtype "complex64" is unknown'),
        (lambda: TensorSpec("a", "uint8", (0,)), "extent of axis 0 must be at least 1"),
        (lambda: TensorSpec("a", "uint8", (1,) * 9), "rank must be from 0 to 8, got 9"),
        (lambda: TensorSpec("a" * 1025, "uint8", (1,)), "name_len must be from 1 to 1024, got 1025"),
        (lambda: plan_index([TensorSpec("a", "uint8", (1,))] * 2), 'tensor "a" is in the index twice'),
    ],
)
def test_what_cannot_be_read_cannot_be_made(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_the_writer_holds_its_caller_to_the_specs(tmp_path: Path) -> None:
    specs = [TensorSpec("a", "float32", (2,)), TensorSpec("b", "float32", (2,))]
    writer = WeightsWriter(tmp_path / "w", specs)
    with pytest.raises(ValueError, match="expected 'a', got 'b'"):
        writer.write("b", np.zeros(2, np.float32))
    with pytest.raises(ValueError, match=r"tensor 'a' must be float32\[2\], got float64\[2\]"):
        writer.write("a", np.zeros(2))
    with pytest.raises(ValueError, match=r"tensor 'a' must be float32\[2\], got float32\[2, 1\]"):
        writer.write("a", np.zeros((2, 1), np.float32))
    with pytest.raises(ValueError, match="tensor 'a' must be"):
        writer.write("a", np.zeros(2, ">f4"))
    writer.write("a", np.zeros(4, np.float32)[::2])  # a strided view is made dense
    with pytest.raises(ValueError, match="tensor 'b' was not written"):
        writer.finish()
    writer.write("b", np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="expected none, got 'c'"):
        writer.write("c", np.zeros(2, np.float32))
    writer.finish()


def test_writing_is_chunked_and_survives_short_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_writer, "_CHUNK_BYTES", 7)
    assert write_tiny(tmp_path / "a").read_bytes() == write_tiny(tmp_path / "b").read_bytes()
    assert read_weights_index(tmp_path / "a").tensors[0].spec == next(iter(TENSORS))


def test_a_full_disk_is_noticed_before_anything_is_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", no_space)
    with pytest.raises(OSError, match="No space left on device") as caught:
        WeightsWriter(tmp_path / "w", list(TENSORS))
    assert caught.value.filename == str(tmp_path / "w")


def test_an_exception_closes_the_file_unfinished(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="planted"), WeightsWriter(tmp_path / "w", list(TENSORS)) as writer:
        raise RuntimeError("planted")
    assert writer.entry is None
    with pytest.raises(ValueError, match="closed file"):
        writer.write("norm.weight", next(iter(TENSORS.values())))
