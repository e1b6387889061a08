"""The folder of a build cache, and where everything in it lies.

CACHEDIR.TAG            says that this is a cache and that it is ours: nothing is ever deleted in a folder without it
cache.lock              locked (flock) while entries are looked up, marked, published or removed: for moments only
content_hashes.json     content_hashes.py
entries/KEY/            complete entries: entry.py
building/KEY/           what is being built, moved to entries/KEY when it is complete
locks/KEY.lock          locked by the one who builds KEY
trash/                  entries on their way out
"""

import errno
import logging
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from precast.builder.cache.file_lock import exclusive, try_exclusive
from precast.builder.errors import BuildCacheError
from precast.checkpoints.durable_files import os_errors_named

TAG_NAME = "CACHEDIR.TAG"
TAG = (
    b"Signature: 8a477f597d28d172789f06886806bc55\n"
    b"# Build cache of precast, format 1: may be deleted at any time, see https://bford.info/cachedir/\n"
)
LOCK_NAME = "cache.lock"
TRASH_LOCK_NAME = "trash.lock"
_PRIVATE = 0o700  # engines in here are loaded without a question: nobody else may put one in
_FOLDERS = ("entries", "building", "locks", "trash")
_logger = logging.getLogger(__name__)


class CacheDirectory:
    """Paths in a cache, its lock, the folders to build in, and the cleaning up."""

    def __init__(self, root: Path) -> None:
        """`root` is absolute. Nothing is touched."""
        self.root = root
        self.entries, self.building, self.locks, self.trash = (root / name for name in _FOLDERS)
        self.content_hashes = root / "content_hashes.json"

    def exists(self) -> bool:
        """Whether there is a cache. Raises BuildCacheError for a folder of something else."""
        with self.errors_named():
            if not self.root.exists() or self._is_new():
                return False
            self._check_tag()
        return True

    def create(self) -> None:
        """Make what is missing. Raises BuildCacheError for a folder of something else, and where it cannot."""
        with self.errors_named():
            self.root.mkdir(_PRIVATE, parents=True, exist_ok=True)
            if self._is_new():
                with exclusive(self.root / LOCK_NAME):
                    self._write_tag()
            self._check_tag()
            for folder in (self.entries, self.building, self.locks, self.trash):
                folder.mkdir(_PRIVATE, exist_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The only one who looks up, marks, publishes or removes entries. Raises BuildCacheError."""
        with self.errors_named(), exclusive(self.root / LOCK_NAME):
            yield

    @contextmanager
    def errors_named(self) -> Iterator[None]:
        """Turn an OSError into a BuildCacheError that names this cache."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            place = f" ({error.filename})" if error.filename is not None else ""
            raise BuildCacheError(
                f"{self.root}: the build cache cannot be used: {reason}{place}: {_advice(error)}"
            ) from error

    @contextmanager
    def build_folder(self, key: str) -> Iterator[Path]:
        """An empty folder to build in, for one process at a time. What is left of it at the end is deleted."""
        folder = self.building / key

        def say_wait() -> None:
            _logger.warning("build cache: another process builds this engine in %s: waiting for it", folder)

        with ExitStack() as stack:
            with self.errors_named():
                stack.enter_context(exclusive(self._build_lock(key), remove=True, on_wait=say_wait))
                _delete(folder)  # of a process that was killed
                folder.mkdir()
            try:
                yield folder
            finally:
                with self.errors_named():
                    _delete(folder)

    def sweep(self) -> None:
        """Delete what was discarded, and what killed processes have left. Raises BuildCacheError."""
        with self.errors_named():
            for key in {path.stem for folder in (self.locks, self.building) for path in folder.iterdir()}:
                with try_exclusive(self._build_lock(key), remove=True) as free:
                    if free:
                        _delete(self.building / key)
        self.empty_trash()

    def empty_trash(self) -> None:
        """Raises BuildCacheError."""
        with self.errors_named():
            if not any(self.trash.iterdir()):
                return
            with exclusive(self.root / TRASH_LOCK_NAME):  # two that delete one folder stumble over each other
                for path in self.trash.iterdir():
                    _delete(path)

    def _build_lock(self, key: str) -> Path:
        return self.locks / f"{key}.lock"

    def _is_new(self) -> bool:
        """Whether it is empty but for the first steps of whoever makes it."""
        return all(path.name.startswith((LOCK_NAME, f"{TAG_NAME}.")) for path in self.root.iterdir())

    def _write_tag(self) -> None:
        temporary = self.root / f"{TAG_NAME}.partial"
        with os_errors_named(temporary):
            temporary.write_bytes(TAG)
        temporary.replace(self.root / TAG_NAME)

    def _check_tag(self) -> None:
        tag = self.root / TAG_NAME
        if not tag.is_file():
            raise BuildCacheError(
                f"{self.root}: is not a build cache, it holds other files and no {TAG_NAME}: "
                "choose an empty or a new directory"
            )
        if tag.read_bytes() != TAG:
            raise BuildCacheError(
                f"{tag}: is not that of a build cache of format 1: choose another directory, or delete this one"
            )


def _delete(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _advice(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free more space (`precast cache clear`), or choose a directory on another disk"
    return "choose a directory on a local disk that can be written (PRECAST_CACHE), or build without the cache"
