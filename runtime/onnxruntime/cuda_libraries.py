"""Finds the ONNX Runtime that has CUDA, and what it needs of CUDA, without importing anything.

The packages onnxruntime and onnxruntime-gpu install over each other, into one folder: names and sizes tell which one a
library there belongs to.
"""

import ctypes
import os
import struct
import sys
from collections.abc import Callable
from importlib.metadata import Distribution, PackageNotFoundError, PackagePath, distribution
from pathlib import Path
from typing import BinaryIO

PATH_VARIABLE = "PRECAST_ONNXRUNTIME_CUDA"
PACKAGE = "onnxruntime-gpu"
CUDA_PROVIDER_LIBRARY = "libonnxruntime_providers_cuda.so"

_NVIDIA_FOLDERS = ("nvidia/lib", "nvidia/*/lib", "nvidia/*/*/lib")
_PROGRAM_LOAD, _PROGRAM_DYNAMIC = 1, 2
_TAG_END, _TAG_NEEDED, _TAG_STRINGS = 0, 1, 5


def find_onnxruntime_gpu() -> Path | None:
    """The library of ONNX Runtime that has its CUDA provider beside it: where PRECAST_ONNXRUNTIME_CUDA says, else that
    of the package onnxruntime-gpu. None where the package is not installed.

    Raises FileNotFoundError where what is named or installed is not whole.
    """
    if chosen := os.environ.get(PATH_VARIABLE):
        return _checked(Path(chosen), f"which {PATH_VARIABLE} names")
    try:
        package = distribution(PACKAGE)
    except PackageNotFoundError:
        return None
    library, size_bytes = _library_of(package)
    hint = f"of {PACKAGE} {package.version}: install that again, without the package onnxruntime beside it"
    _checked(library, hint)
    if size_bytes is not None and library.stat().st_size != size_bytes:
        raise FileNotFoundError(f"{library} was overwritten, it is not the one {hint}")
    return library


def preload_cuda_libraries(library: Path) -> list[str]:
    """Open what the CUDA provider beside `library` is linked against, for the whole process and for good: from the
    wheels of NVIDIA on sys.path, else as the loader finds it.

    Returns the names of those that neither has. Raises OSError where the provider cannot be read.
    """
    folders = [
        folder
        for entry in sys.path
        for pattern in _NVIDIA_FOLDERS
        for folder in sorted(Path(entry or ".").glob(pattern))
    ]
    pending = needed_libraries(library.with_name(CUDA_PROVIDER_LIBRARY))
    while pending:
        failed = [name for name in pending if not _preload(name, folders)]
        if len(failed) == len(pending):
            return failed
        pending = failed  # one may need another that has been opened since
    return []


def open_forget_error(library: Path) -> Callable[[], None]:
    """What makes CUDA's runtime forget the last error of the calling thread: the runtime that the CUDA provider beside
    `library` is linked against, since each copy of it has an error of its own. It must be open already.

    Raises OSError where the provider has none.
    """
    provider = library.with_name(CUDA_PROVIDER_LIBRARY)
    name = next((name for name in needed_libraries(provider) if name.startswith("libcudart.so")), None)
    if name is None:
        raise OSError(f"{provider} is not linked against CUDA's runtime, libcudart.so: use that of {PACKAGE}")
    get_last_error = ctypes.CDLL(name).cudaGetLastError

    def forget() -> None:
        get_last_error()

    return forget


def needed_libraries(path: Path) -> list[str]:
    """The names of what a 64-bit little-endian ELF library is linked against. Raises OSError where it is none."""
    with path.open("rb") as file:
        try:
            return _read_needed(file)
        except (struct.error, ValueError, StopIteration):
            raise OSError(f"{path} is not a shared library of this platform") from None


def _checked(library: Path, whose: str) -> Path:
    for path in (library, library.with_name(CUDA_PROVIDER_LIBRARY)):
        if not path.is_file():
            raise FileNotFoundError(f"there is no {path}, {whose}")
    return library


def _library_of(package: Distribution) -> tuple[Path, int | None]:
    """Its path and size, as the package's own list of files says, else where it must be."""
    for file in package.files or []:
        if file.parent.name == "capi" and file.name.startswith("libonnxruntime.so."):
            return Path(str(package.locate_file(file))), file.size
    guess = PackagePath("onnxruntime", "capi", f"libonnxruntime.so.{package.version}")
    return Path(str(package.locate_file(guess))), None


def _preload(name: str, folders: list[Path]) -> bool:
    for path in [*(folder / name for folder in folders if (folder / name).is_file()), name]:
        try:
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return True
    return False


def _read_needed(file: BinaryIO) -> list[str]:
    header = file.read(64)
    if header[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a 64-bit little-endian ELF file")
    (programs_offset,) = struct.unpack_from("<Q", header, 32)
    program_size, num_programs = struct.unpack_from("<HH", header, 54)
    # Each program header: (type, offset in the file, address, size in the file).
    programs = []
    for index in range(num_programs):
        program = _read_at(file, programs_offset + index * program_size, 56)
        kind, _, offset, address, _, size, _, _ = struct.unpack("<IIQQQQQQ", program)
        programs.append((kind, offset, address, size))
    _, offset, _, size = next(program for program in programs if program[0] == _PROGRAM_DYNAMIC)
    needed: list[int] = []
    strings_address = -1
    for tag, value in struct.iter_unpack("<qQ", _read_at(file, offset, size)):
        if tag == _TAG_END:
            break
        if tag == _TAG_NEEDED:
            needed.append(value)
        elif tag == _TAG_STRINGS:
            strings_address = value
    strings = next(
        offset + strings_address - address
        for kind, offset, address, size in programs
        if kind == _PROGRAM_LOAD and address <= strings_address < address + size
    )
    return [_read_text(file, strings + offset) for offset in needed]


def _read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def _read_text(file: BinaryIO, offset: int) -> str:
    return _read_at(file, offset, 4096).split(b"\0", 1)[0].decode()
