"""Locks between processes: flock on small files. The system releases one when its holder dies.

A lock belongs to the open file, not to the process: two threads that open the same file exclude each other, and a fork
shares its parent's.
"""

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from precast.checkpoints.durable_files import os_errors_named

_PATIENCE_S = 0.1


@contextmanager
def exclusive(path: Path, *, remove: bool = False, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the exclusive lock of the file at `path`, which is made where it is missing.

    Args:
        path: The file; its directory must exist.
        remove: Delete the file before the lock is released. Whoever waits for it then finds a new one.
        on_wait: Called once when another holds the lock for more than a moment, before waiting without limit.

    Raises:
        OSError: the file cannot be opened for writing, or its file system has no locks.
    """
    descriptor = _open_exclusive(path, on_wait)
    try:
        yield
    finally:
        if remove:
            path.unlink(missing_ok=True)
        _unlock(descriptor)


@contextmanager
def try_exclusive(path: Path, *, remove: bool = False) -> Iterator[bool]:
    """The same without waiting: False where another holds the lock, shared or exclusive. Raises OSError."""
    descriptor = _open(path)
    if not _lock_or_close(descriptor, path, fcntl.LOCK_EX | fcntl.LOCK_NB):
        yield False
        return
    try:
        yield _is_still_at(path, descriptor)
    finally:
        if remove and _is_still_at(path, descriptor):
            path.unlink(missing_ok=True)
        _unlock(descriptor)


def hold_shared(path: Path) -> int:
    """A descriptor that holds a shared lock of the file until it, and every copy that a fork made, is closed.

    Raises OSError: BlockingIOError where another holds the exclusive lock.
    """
    descriptor = _open(path)
    if not _lock_or_close(descriptor, path, fcntl.LOCK_SH | fcntl.LOCK_NB):
        raise BlockingIOError(errno.EWOULDBLOCK, "another process holds the lock", str(path))
    return descriptor


def _open_exclusive(path: Path, on_wait: Callable[[], None] | None) -> int:
    while True:
        if on_wait is not None and not _lock_soon(path):
            on_wait()
            on_wait = None
        descriptor = _open(path)
        _lock_or_close(descriptor, path, fcntl.LOCK_EX)
        if _is_still_at(path, descriptor):
            return descriptor
        os.close(descriptor)  # its last holder removed the file: this lock excludes nobody


def _lock_soon(path: Path) -> bool:
    """Whether the lock is free now or in a moment; a short look at it, by whoever sweeps, is not worth a word."""
    with try_exclusive(path) as free:
        if free:
            return True
    time.sleep(_PATIENCE_S)
    with try_exclusive(path) as free:
        return free


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _lock(descriptor: int, path: Path, operation: int) -> None:
    with os_errors_named(path):
        fcntl.flock(descriptor, operation)


def _lock_or_close(descriptor: int, path: Path, operation: int) -> bool:
    """Lock, or close the descriptor: False where another holds the lock, otherwise by an exception."""
    try:
        _lock(descriptor, path, operation)
    except BlockingIOError:
        os.close(descriptor)
        return False
    except BaseException:  # an interrupt while it waits, or a file system without locks
        os.close(descriptor)
        raise
    return True


def _is_still_at(path: Path, descriptor: int) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


def _unlock(descriptor: int) -> None:
    """Said aloud, because a fork may hold a copy of the descriptor: closing this one would change nothing then."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)
