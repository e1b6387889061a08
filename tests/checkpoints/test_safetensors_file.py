"""The safetensors reader: what it reads, and that it refuses exactly what the safetensors package refuses."""

import json
import mmap
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from precast.checkpoints.errors import (
    CheckpointError,
    CorruptFileError,
    DuplicateTensorError,
    UnsupportedDtypeError,
    WeightFilesError,
)
from precast.checkpoints.safetensors_file import ITEM_BITS, MAX_HEADER_BYTES, SafetensorsFile
from precast.checkpoints.tensor_info import TensorInfo
from tests.checkpoints.editing import write_safetensors


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_tensors_of_every_supported_dtype_are_read_exactly(tmp_path: Path) -> None:
    values = torch.randn(5, 7, generator=torch.Generator().manual_seed(1))
    tensors = {
        "a": values,
        "b": values.to(torch.bfloat16),
        "c": values.to(torch.float16),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
    }
    save_file(tensors, tmp_path / "t.safetensors", {"format": "pt"})
    file = SafetensorsFile(tmp_path / "t.safetensors")
    assert file.infos() == {
        "a": TensorInfo("float32", (5, 7), 140),
        "b": TensorInfo("bfloat16", (5, 7), 70),
        "c": TensorInfo("float16", (5, 7), 70),
        "scalar": TensorInfo("float32", (), 4),
        "empty": TensorInfo("float32", (0, 3), 0),
    }
    assert file.tensor("b").dtype == ml_dtypes.bfloat16
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(file.tensor(name).astype(np.float32), tensor.float().numpy())


def test_arrays_view_the_file_are_read_only_and_outlive_it(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "t.safetensors", {"a": entry("F32", [2], 0, 8)}, b"\0\0\x80\x3f" * 2)
    file = SafetensorsFile(path)
    array = file.tensor("a")
    assert np.shares_memory(array, file.tensor("a"))
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 3
    file.close()
    np.testing.assert_array_equal(array, [1.0, 1.0])
    with pytest.raises(KeyError):
        file.tensor("a")


def test_closing_ends_the_mapping(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "t.safetensors", {"a": entry("F32", [2], 0, 8)}, b"\0" * 8)
    file = SafetensorsFile(path)
    assert float(file.tensor("a").sum()) == 0
    assert str(path) in Path("/proc/self/maps").read_text()
    file.close()
    assert str(path) not in Path("/proc/self/maps").read_text()


def resident_pages(array: np.ndarray[Any, Any]) -> int:
    """Pages of this process's mapping around `array` that are resident, from /proc/self/smaps, in kB."""
    address, resident = array.ctypes.data, 0
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split()[0]
        if "-" in head and not head.endswith(":"):
            start, stop = (int(part, 16) for part in head.split("-"))
            inside = start <= address < stop
        elif inside and head == "Rss:":
            resident = int(line.split()[1])
    return resident


def test_release_gives_back_what_reading_made_resident(tmp_path: Path) -> None:
    size = 64 * mmap.PAGESIZE
    data = np.arange(size // 4, dtype=np.float32)
    write_safetensors(tmp_path / "t.safetensors", {"a": entry("F32", [size // 4], 0, size)}, data.tobytes())
    file = SafetensorsFile(tmp_path / "t.safetensors")
    array = file.tensor("a")
    assert float(array.sum()) > 0
    before = resident_pages(array)
    file.release("a")
    assert before * 1024 >= size
    assert resident_pages(array) * 1024 <= 4 * mmap.PAGESIZE
    np.testing.assert_array_equal(array, data)


def test_a_header_that_does_not_align_the_data_is_read(tmp_path: Path) -> None:
    header = json.dumps({"a": entry("BF16", [3], 0, 6), "b": entry("F32", [1], 6, 10)}).encode()
    header += b" " * ((5 - len(header)) % 8)
    data = torch.tensor([1.0, -2.0, 3.5], dtype=torch.bfloat16).view(torch.int16).numpy().tobytes()
    path = write_safetensors(tmp_path / "t.safetensors", header, data + np.float32(0.25).tobytes())
    file = SafetensorsFile(path)
    np.testing.assert_array_equal(file.tensor("a").astype(np.float32), [1.0, -2.0, 3.5])
    assert file.tensor("b")[0] == 0.25


def test_a_tensor_of_another_dtype_is_listed_and_not_read(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "t.safetensors", {"w": entry("F8_E4M3", [2, 2], 0, 4)}, b"\0" * 4)
    file = SafetensorsFile(path)
    assert file.infos()["w"] == TensorInfo("F8_E4M3", (2, 2), 4)
    with pytest.raises(UnsupportedDtypeError, match="w is stored as F8_E4M3, which is not supported"):
        file.tensor("w")


GOOD = {"a": entry("F32", [2], 0, 8), "b": entry("F32", [1], 8, 12)}


@pytest.mark.parametrize(
    ("header", "data_bytes", "message"),
    [
        (b"not json", 0, "header is not valid JSON"),
        (b'\xff\xfe"', 0, "header is not valid JSON"),
        (b"[1]", 0, "it holds a list, not an object"),
        (b"[" * 100_000, 0, "nested too deeply"),
        ({"a": 3}, 0, "a: the header has no object for it"),
        ({"a": entry("F32", [2], 0, 8)}, 7, "truncated: it has .* bytes, its tensors need"),
        (GOOD, 11, "truncated"),
        (GOOD, 13, "1 more than its tensors need"),
        ({"a": entry("F32", [2], 0, 8), "b": entry("F32", [1], 4, 8)}, 8, "b: .* overlaps the tensor before it"),
        ({"a": entry("F32", [2], 0, 8), "b": entry("F32", [1], 12, 16)}, 16, "b: .* leaves a gap"),
        ({"a": entry("F32", [2], 8, 16)}, 16, "a: .* leaves a gap"),
        ({"a": entry("F32", [2], 8, 0)}, 8, r"a: F32 \[2\] takes 8 bytes, its data_offsets \[8, 0\] span -8"),
        ({"a": entry("F32", [2, 2], 0, 8)}, 8, "takes 16 bytes"),
        ({"a": entry("F32", [1], 0, 8)}, 8, "takes 4 bytes"),
        ({"a": entry("F32", [2**40, 2**40], 0, 8)}, 8, "takes"),
        ({"a": entry("F32", [-2], 0, 8)}, 8, "malformed"),
        ({"a": entry("F32", [2.0], 0, 8)}, 8, "malformed"),  # type: ignore[list-item]
        ({"a": entry("F32", [True], 0, 4)}, 4, "malformed"),
        ({"a": {"dtype": "F32", "shape": [2]}}, 8, "malformed"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4, 8]}}, 8, "malformed"),
        ({"a": {"dtype": 32, "shape": [2], "data_offsets": [0, 8]}}, 8, "malformed"),
        ({"__metadata__": {"a": 1}}, 0, "__metadata__ must map strings to strings"),
        ({"__metadata__": "x"}, 0, "__metadata__ must map strings to strings"),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, header: Any, data_bytes: int, message: str) -> None:
    path = write_safetensors(tmp_path / "bad.safetensors", header, b"\0" * data_bytes)
    with pytest.raises(CorruptFileError, match=message) as caught:
        SafetensorsFile(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("size", [0, 1, 7])
def test_a_file_shorter_than_its_header_length_is_refused(tmp_path: Path, size: int) -> None:
    (tmp_path / "t").write_bytes(b"\0" * size)
    with pytest.raises(CorruptFileError, match=f"has {size} bytes, a safetensors file has at least 8"):
        SafetensorsFile(tmp_path / "t")


def test_a_file_that_the_system_refuses_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightFilesError, match="absent: cannot be read: No such file or directory"):
        SafetensorsFile(tmp_path / "absent")


def test_a_header_larger_than_the_file_is_refused(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "t", GOOD, b"\0" * 12, header_bytes=5000)
    with pytest.raises(CorruptFileError, match="truncated: the header ends at byte 5008, and the file has"):
        SafetensorsFile(path)


@pytest.mark.parametrize("header_bytes", [MAX_HEADER_BYTES + 1, 2**64 - 1])
def test_a_header_length_beyond_reason_is_refused(tmp_path: Path, header_bytes: int) -> None:
    path = write_safetensors(tmp_path / "t", GOOD, header_bytes=header_bytes)
    with pytest.raises(CorruptFileError, match=f"the header has {header_bytes} bytes, more than"):
        SafetensorsFile(path)


def test_a_tensor_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    one = json.dumps(entry("F32", [1], 0, 4))
    path = write_safetensors(tmp_path / "t", f'{{"a": {one}, "a": {one}}}'.encode(), b"\0" * 4)
    with pytest.raises(DuplicateTensorError, match="in the header the key 'a' occurs twice"):
        SafetensorsFile(path)


def test_a_dtype_that_the_format_does_not_have_is_refused(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "t", {"a": entry("F33", [1], 0, 4)}, b"\0" * 4)
    with pytest.raises(UnsupportedDtypeError, match="a is stored as 'F33', which is no dtype of the format"):
        SafetensorsFile(path)


def test_a_file_of_any_length_prefix_of_a_good_one_is_refused(tmp_path: Path) -> None:
    good = write_safetensors(tmp_path / "good", GOOD, b"\0" * 12).read_bytes()
    for size in range(len(good)):
        (tmp_path / "cut").write_bytes(good[:size])
        with pytest.raises(CorruptFileError):
            SafetensorsFile(tmp_path / "cut")


small_counts = st.integers(-1, 9)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F16", "I64", "F8_E4M3", "BOOL", "F4", "F99"]),
        "shape": st.lists(small_counts, max_size=3),
        "data_offsets": st.lists(small_counts, min_size=1, max_size=3),
    }
)


@settings(max_examples=500, deadline=None)
@given(st.dictionaries(st.sampled_from("abc"), entries, max_size=3), st.integers(0, 24))
def test_accepts_what_the_package_accepts(
    tmp_path_factory: pytest.TempPathFactory, header: dict[str, Any], data_bytes: int
) -> None:
    path = write_safetensors(tmp_path_factory.mktemp("fuzz") / "t", header, bytes(range(data_bytes)))
    check_against_package(path)


@st.composite
def sound_headers(draw: st.DrawFn) -> tuple[dict[str, Any], int]:
    """Headers whose tensors cover the data, sometimes with one offset moved by one."""
    header: dict[str, Any] = {}
    end = 0
    for name in draw(st.lists(st.sampled_from("abcd"), unique=True)):
        dtype = draw(st.sampled_from(sorted(ITEM_BITS)))
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        size = int(np.prod(shape, dtype=int)) * ITEM_BITS[dtype] // 8
        header[name] = entry(dtype, shape, end, end + size)
        end += size
    is_shifted = draw(st.booleans())
    if header and is_shifted:
        header[draw(st.sampled_from(sorted(header)))]["data_offsets"][draw(st.integers(0, 1))] += 1
    return header, end


@settings(max_examples=500, deadline=None)
@given(sound_headers())
def test_accepts_what_the_package_accepts_of_nearly_sound_files(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[dict[str, Any], int]
) -> None:
    header, data_bytes = case
    path = write_safetensors(tmp_path_factory.mktemp("fuzz") / "t", header, bytes(i % 251 for i in range(data_bytes)))
    check_against_package(path)


def check_against_package(path: Path) -> None:
    """Both open the file, or neither does; then both see the same tensors."""
    try:
        with safe_open(path, framework="pt") as opened:
            expected = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError:
        with pytest.raises(CheckpointError):
            SafetensorsFile(path)
        return
    file = SafetensorsFile(path)
    assert {name: info.shape for name, info in file.infos().items()} == expected
