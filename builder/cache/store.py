"""The build cache: engines by key, in one folder, of limited size. directory.py and entry.py say what lies where.

Every step that looks up, marks, publishes or removes an entry holds the cache's lock, for moments. A build takes long
and holds a lock of its key only: two processes that build the same engine build it once, and others go on.

A process that is killed leaves no lock, since the system releases it, and no half entry, since an entry gets its name
when it is complete. What it leaves in building/, locks/ and trash/ is removed by whoever comes next.
"""

import logging
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from precast.builder.cache.content_hashes import ContentHashes
from precast.builder.cache.directory import LOCK_NAME, CacheDirectory
from precast.builder.cache.entry import (
    ENGINE_NAME,
    IN_USE_NAME,
    CachedEngine,
    Entry,
    find_damage,
    write_last_use,
    write_record,
)
from precast.builder.cache.file_lock import try_exclusive
from precast.builder.cache.key import Description, cache_key, differences
from precast.checkpoints.durable_files import sync_directory

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Removed:
    """What was removed."""

    num_entries: int = 0
    size_bytes: int = 0

    def __add__(self, other: "Removed") -> "Removed":
        return Removed(self.num_entries + other.num_entries, self.size_bytes + other.size_bytes)


class BuildCache:
    """A cache in a folder, shared by any number of processes. Every method raises BuildCacheError where it fails.

    Limits hold after every use, with two exceptions. An entry in use is never removed. And one that alone is larger
    than the limit pushes no other out: it is the first to go once nobody uses it.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        max_bytes: int,
        max_entries: int | None = None,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Touches nothing; the folder is made when an engine is first asked for."""
        if max_bytes < 0 or (max_entries is not None and max_entries < 1):
            raise ValueError(f"max_bytes must be at least 0 and max_entries 1, got {max_bytes} and {max_entries}")
        self._dir = CacheDirectory(Path.cwd() / Path(directory).expanduser())
        self._max_bytes = max_bytes
        self._max_entries = max_entries
        self._now_ns = now_ns

    @property
    def directory(self) -> Path:
        return self._dir.root

    @property
    def max_bytes(self) -> int:
        return self._max_bytes

    def content_hashes(self) -> ContentHashes:
        """The digests of large files that this cache remembers."""
        self._dir.create()
        return ContentHashes(self._dir.content_hashes, self._dir.root / LOCK_NAME, now_ns=self._now_ns)

    def get(self, description: Description) -> CachedEngine | None:
        """The engine of that description, held and marked as just used; None where there is none.

        A damaged one is removed, whoever uses it: what is mapped stays valid, and the rest is of no use to anybody.
        """
        self._dir.create()
        path = self._dir.entries / cache_key(description)
        with self._dir.locked():
            if not path.exists():
                return None
            if damage := find_damage(path):
                _logger.warning("build cache: a damaged engine is removed and built again: %s", damage)
                self._discard(path)
                cached = None
            else:
                cached = self._use(path, is_hit=True)
        self._dir.empty_trash()
        return cached

    def get_or_build(
        self, description: Description, build: Callable[[Path], object], *, source: str = ""
    ) -> CachedEngine:
        """The engine of that description, held and marked as just used. Where there is none, `build` makes it.

        Args:
            description: See key.py.
            build: Called with the path where it has to make an engine directory. What it raises is raised, and leaves
                nothing behind. Whoever asks for the same engine meanwhile waits.
            source: The name of the model, for people.
        """
        if cached := self.get(description):
            return cached
        key = cache_key(description)
        with self._dir.build_folder(key) as folder:
            if cached := self.get(description):  # another has built it meanwhile
                return cached
            build(folder / ENGINE_NAME)
            with self._dir.errors_named():
                write_record(folder, description, source)
            with self._dir.locked():
                path = self._dir.entries / key
                folder.rename(path)
                sync_directory(self._dir.entries)
                cached = self._use(path, is_hit=False)
                self._warn_if_too_large(Entry.read(path))
        self._dir.sweep()
        return cached

    def entries(self) -> list[Entry]:
        """All entries, the one that goes first at the front."""
        if not self._dir.exists():
            return []
        self._dir.create()
        with self._dir.locked():
            return self._read_entries()

    def explain_miss(self, description: Description) -> str:
        """What the nearest engine of the same weights differs in, for people."""
        others = [entry.record().get("description", {}) for entry in self.entries()]
        same_weights = [other for other in others if _weights(other) == _weights(description)]
        if not same_weights:
            return "it holds no engine of these weights"
        nearest = min((differences(description, other) for other in same_weights), key=len)
        return f"the nearest engine of these weights differs in {', '.join(nearest)}"

    def prune(self) -> Removed:
        """Apply the limits, and remove what killed processes have left."""
        return self._remove(self._evict)

    def clear(self) -> Removed:
        """Remove every entry that is not in use, and forget every content hash."""

        def remove_all() -> Removed:
            self._dir.content_hashes.unlink(missing_ok=True)
            return sum((self._discard_unused(entry) for entry in self._read_entries()), Removed())

        return self._remove(remove_all)

    def _remove(self, remove: Callable[[], Removed]) -> Removed:
        if not self._dir.exists():
            return Removed()
        self._dir.create()
        with self._dir.locked():
            removed = remove()
        self._dir.sweep()
        return removed

    # ------------------------------------------------------------------------- with the cache's lock held

    def _use(self, path: Path, *, is_hit: bool) -> CachedEngine:
        cached = CachedEngine(path, is_hit=is_hit)
        newest_ns = max((entry.last_use_ns for entry in self._read_entries()), default=0)
        write_last_use(path, max(self._now_ns(), newest_ns + 1))  # clocks stand still, and go back
        self._evict()
        return cached

    def _evict(self) -> Removed:
        """Remove least recently used entries until the limits hold. What is in use, `_discard_unused` leaves alone."""
        removed = Removed()
        fitting = []
        for entry in self._read_entries():
            if entry.size_bytes > self._max_bytes:
                removed += self._discard_unused(entry)
            else:
                fitting.append(entry)
        size_bytes, num_entries = sum(entry.size_bytes for entry in fitting), len(fitting)
        for entry in fitting:
            if size_bytes <= self._max_bytes and (self._max_entries is None or num_entries <= self._max_entries):
                break
            gone = self._discard_unused(entry)
            size_bytes, num_entries = size_bytes - gone.size_bytes, num_entries - gone.num_entries
            removed += gone
        return removed

    def _discard_unused(self, entry: Entry) -> Removed:
        with try_exclusive(entry.path / IN_USE_NAME) as free:
            if not free:
                return Removed()
            self._discard(entry.path)
        return Removed(1, entry.size_bytes)

    def _discard(self, path: Path) -> None:
        """Deleting gigabytes takes a while: here the entry only loses its name."""
        path.rename(self._dir.trash / f"{path.name}-{secrets.token_hex(4)}")

    def _read_entries(self) -> list[Entry]:
        found = [Entry.read(path) for path in self._dir.entries.iterdir()]
        return sorted(found, key=lambda entry: (entry.last_use_ns, entry.key))

    def _warn_if_too_large(self, entry: Entry) -> None:
        if entry.size_bytes > self._max_bytes:
            _logger.warning(
                "build cache: an engine of %d bytes is over the limit of %d: it stays only while it is in use",
                entry.size_bytes,
                self._max_bytes,
            )


def _weights(description: Description) -> object:
    files = description.get("files")
    return files.get("weights") if isinstance(files, dict) else None
