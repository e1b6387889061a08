"""Writing a safetensors file one tensor at a time.

The safetensors package writes a file from tensors that are all in memory. Here only one is, so that a checkpoint of any
size can be converted; the format is that of safetensors_file.py, and the tests read the files with the package.
"""

import json
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from precast.checkpoints.durable_files import os_errors_named, reserve, write_all
from precast.checkpoints.safetensors_file import DTYPE_NAMES
from precast.checkpoints.tensor_info import NUMPY_DTYPES, TensorInfo

_FORMAT_NAMES = {name: format_name for format_name, name in DTYPE_NAMES.items()}
_ALIGNMENT = 64  # of the data in the file, so that arrays of a mapped file are aligned to every dtype
_CHUNK_BYTES = 16 << 20


def write_safetensors(path: Path, infos: Mapping[str, TensorInfo], tensors: Iterable[tuple[str, NDArray[Any]]]) -> None:
    """Write a new file.

    Args:
        path: Of the file, which must not exist.
        infos: Dtype and shape of every tensor, in the order of their data.
        tensors: Name and array of every tensor in that order; each is dropped before the next one is asked for.

    Raises:
        ValueError: `tensors` is not what `infos` says.
        OSError: with the file's name.
    """
    header = _header(infos)
    remaining = list(reversed(list(infos.items())))
    with path.open("xb", buffering=0) as file, os_errors_named(path):
        reserve(file, len(header) + sum(_size_bytes(info) for info in infos.values()))
        write_all(file, header)
        for name, array in tensors:
            expected, info = remaining.pop() if remaining else ("nothing more", TensorInfo("", (), 0))
            if name != expected or array.shape != info.shape or array.dtype != NUMPY_DTYPES[info.dtype]:
                raise ValueError(f"{path}: expected {expected} {info}, got {name} {array.dtype}{list(array.shape)}")
            octets = array.ravel().view("uint8").data  # ravel copies where the array is not dense
            for start in range(0, len(octets), _CHUNK_BYTES):
                write_all(file, octets[start : start + _CHUNK_BYTES])
    if remaining:
        raise ValueError(f"{path}: tensor {remaining[-1][0]} was not written")


def _header(infos: Mapping[str, TensorInfo]) -> bytes:
    """The length and the JSON of the header, padded with spaces as the format allows."""
    entries, begin = {}, 0
    for name, info in infos.items():
        end = begin + _size_bytes(info)
        entries[name] = {
            "dtype": _FORMAT_NAMES[info.dtype], "shape": list(info.shape), "data_offsets": [begin, end],
        }  # fmt: skip
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode("utf-8")
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _size_bytes(info: TensorInfo) -> int:
    return prod(info.shape) * NUMPY_DTYPES[info.dtype].itemsize
