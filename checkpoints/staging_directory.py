"""A directory that appears under its name complete, or not at all.

parent/.name.partial-XXXXXXXX    being written; locked while its writer lives
parent/name                      appears by one rename, or trades places with its predecessor in one step
"""

import ctypes
import errno
import fcntl
import os
import shutil
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path

from precast.checkpoints.durable_files import sync_directory

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_CANNOT_LOCK = {errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


class StagingDirectory:
    """Made when constructed, beside `target` and so on its file system. End it with `publish` or `discard`.

    What killed writers left beside `target` is removed on the way: the system releases a lock when its holder dies.
    """

    def __init__(self, target: Path) -> None:
        """`target` is a resolved path. Its missing parents are made. Raises OSError."""
        self.target = target
        self._made_parents = _make_parents(target.parent)
        prefix = f".{target.name}.partial-"
        try:
            parent_lock = _open_directory(target.parent)
            try:
                # Held until the new directory has its own lock, so that no other writer takes it for abandoned.
                if _lock(parent_lock, wait=True):
                    _remove_abandoned(target.parent, prefix)
                self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
                self._locks = [_open_directory(self.path)]
                _lock(self._locks[0])
            finally:
                os.close(parent_lock)
        except BaseException:
            self._remove_made_parents()
            raise

    def can_exchange(self) -> bool:
        """Whether the file system can exchange two directories in one step, found out by doing it."""
        a, b = self.path / "a", self.path / "b"
        a.mkdir()
        b.mkdir()
        try:
            exchange(a, b)
        except OSError:
            return False
        finally:
            a.rmdir()
            b.rmdir()
        return True

    def publish(self, *, replace: bool) -> None:
        """Give the directory its name. With `replace` it trades places with the old one, which is then deleted.

        What it holds must have been synced. Raises OSError.
        """
        if replace:
            self._locks.append(_open_directory(self.target))
            _lock(self._locks[-1])
            exchange(self.path, self.target)
        else:
            self.path.rename(self.target)  # replaces nothing but an empty directory
        sync_directory(self.target.parent)
        self._made_parents = []
        self.discard()

    def discard(self) -> None:
        """Delete what is left under the staging name, and the parents that were made for it."""
        _delete(self.path)
        for lock in self._locks:
            os.close(lock)
        self._locks = []
        self._remove_made_parents()

    def _remove_made_parents(self) -> None:
        for parent in reversed(self._made_parents):
            with suppress(OSError):  # somebody else uses it by now
                parent.rmdir()


def exchange(a: Path, b: Path) -> None:
    """Let two paths trade places in one step (Linux's renameat2 with RENAME_EXCHANGE). Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(a))
    if libc.renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), ctypes.c_uint(_RENAME_EXCHANGE)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(a))


def _make_parents(directory: Path) -> list[Path]:
    """Make `directory` and its missing parents; returns those that were made, outermost first."""
    missing = []
    while not directory.exists():
        missing.append(directory)
        directory = directory.parent
    missing.reverse()
    for path in missing:
        path.mkdir(exist_ok=True)
    return missing


def _open_directory(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)


def _lock(descriptor: int, *, wait: bool = False) -> bool:
    """Take the directory's lock. False where another holds it, or where the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if isinstance(error, BlockingIOError) or error.errno in _CANNOT_LOCK:
            return False
        raise
    return True


def _remove_abandoned(parent: Path, prefix: str) -> None:
    for entry in parent.iterdir():
        if not entry.name.startswith(prefix) or entry.is_symlink() or not entry.is_dir():
            continue
        with suppress(FileNotFoundError, PermissionError):  # its writer has just ended, or is another user
            descriptor = _open_directory(entry)
            try:
                if _lock(descriptor):
                    _delete(entry)
            finally:
                os.close(descriptor)


def _delete(directory: Path) -> None:
    try:
        shutil.rmtree(directory)
    except FileNotFoundError:
        pass
    except OSError as error:
        warnings.warn(f"{directory}: could not be deleted ({error}); delete it by hand", RuntimeWarning, stacklevel=2)
