"""Small steps towards files that survive: errors that name them, room reserved, synced, copied, hashed."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_CHUNK_BYTES = 4 << 20
_CANNOT_RESERVE = {errno.EOPNOTSUPP, errno.EINVAL}
_NO_COPY_FILE_RANGE = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}


@contextmanager
def os_errors_named(path: Path) -> Iterator[None]:
    """Put the file's name into an OSError of a call that knew only its descriptor."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def reserve(file: BinaryIO, size_bytes: int) -> None:
    """Reserve the file's whole size on the disk now, so that a lack of space shows before hours of work, not after."""
    if size_bytes == 0:
        return
    try:
        os.posix_fallocate(file.fileno(), 0, size_bytes)
    except OSError as error:
        if error.errno not in _CANNOT_RESERVE:  # where the file system cannot, writing still works
            raise


def write_all(file: BinaryIO, data: bytes | memoryview) -> None:
    """Write all of `data` to an unbuffered file, which may take a part at a time."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def copy_bytes(source: BinaryIO, target: BinaryIO, size_bytes: int) -> None:
    """Copy a file's first `size_bytes`, inside the kernel where it can: some file systems then share the blocks."""
    copied = 0
    while copied < size_bytes:
        try:
            step = os.copy_file_range(source.fileno(), target.fileno(), size_bytes - copied)
        except OSError as error:
            if copied or error.errno not in _NO_COPY_FILE_RANGE:
                raise
            while chunk := source.read(_CHUNK_BYTES):
                target.write(chunk)
            return
        if step == 0:
            return
        copied += step


def sync_file(path: Path, *, drop_cache: bool = False) -> None:
    """Wait until the file is on the disk.

    `drop_cache` then drops its pages from the page cache: writing filled it with small ones, and who maps the file next
    with MADV_HUGEPAGE gets huge ones, where the kernel and the file system can.
    """
    with os_errors_named(path), path.open("rb") as file:
        os.fsync(file.fileno())
        if drop_cache:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def sync_directory(path: Path) -> None:
    """Wait until the directory's own entries are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with os_errors_named(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hash_file(path: Path, advance: Callable[[int], None] | None = None) -> str:
    """SHA-256 of the file in hexadecimal. `advance` is told the size of every part read. Raises OSError."""
    import hashlib  # loading an engine hashes nothing

    digest = hashlib.sha256()
    with os_errors_named(path), path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            if advance is not None:
                advance(len(chunk))
    return digest.hexdigest()
