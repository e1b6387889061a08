"""SHA-256 of large files, remembered: an unchanged checkpoint of 2 GB is read once, not before every build.

A digest is remembered for what the system says of a file: device, inode, size, times of the last change to its content
(mtime) and to its inode (ctime). A write changes both times, and no program can set ctime back, so a file that keeps
its size and gets its old mtime again is still seen as changed.

Times have a grain. A file that is changed, hashed and changed again within one grain looks unchanged, so a digest is
remembered only where the last change is older than RACY_WINDOW_S when hashing starts (the rule of Git's index).
"""

import json
import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from precast.builder.cache.file_lock import exclusive
from precast.builder.errors import BuildError
from precast.builder.progress import ProgressCallback, ignore_progress
from precast.checkpoints.durable_files import hash_file, sync_file

STAGE = "hashing the checkpoint"
RACY_WINDOW_S = 2  # FAT's grain, the coarsest in use
MIN_REMEMBERED_BYTES = 1 << 20  # hashing a smaller file takes less than a millisecond
MAX_REMEMBERED = 4096

_FORMAT = 1
_MAX_TABLE_BYTES = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
_logger = logging.getLogger(__name__)


class FileState(NamedTuple):
    """What the system says of a file without reading it; times in nanoseconds."""

    device: int
    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, path: Path) -> "FileState":
        """Follows links. Raises OSError."""
        status = path.stat()
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def last_change_ns(self) -> int:
        return max(self.mtime_ns, self.ctime_ns)


@dataclass(frozen=True)
class HashedFile:
    """A file, its SHA-256, and its state while it had that."""

    path: Path
    sha256: str
    state: FileState

    def check_unchanged(self) -> None:
        """Raise BuildError where the file has another content by now. Reads it only where its state has changed."""
        if FileState.of(self.path) != self.state and hash_file(self.path) != self.sha256:
            raise BuildError(f"{self.path}: changed while an engine was built from it: build again")


class ContentHashes:
    """Digests of files, and the table that remembers them: a JSON file, replaced as a whole.

    It is only a memory: where it is lost or damaged, files are hashed again. Processes may share it.
    """

    def __init__(self, table: Path, lock: Path, *, now_ns: Callable[[], int] = time.time_ns) -> None:
        """`lock` is a file that writers of the table lock. The directory of both must exist when `hash` is called."""
        self._table = table
        self._lock = lock
        self._now_ns = now_ns

    def hash(self, paths: Sequence[Path], progress: ProgressCallback = ignore_progress) -> list[HashedFile]:
        """The files with their digests, in the same order.

        `progress` is told the bytes of what has to be read, and nothing where nothing has.

        Raises:
            OSError: a file, or the table, cannot be read.
            BuildError: a file changes while it is read.
        """
        remembered = self._read()
        states = {path: FileState.of(path) for path in paths}
        unknown = [path for path in states if states[path] not in remembered]
        advance = _meter(progress, sum(states[path].size_bytes for path in unknown))
        hashed = {path: HashedFile(path, remembered.get(state, ""), state) for path, state in states.items()}
        fresh: dict[FileState, str] = {}
        for path in unknown:
            started_ns = self._now_ns()
            hashed[path] = file = _hash(path, states[path], advance)
            if _may_be_remembered(file.state, started_ns):
                fresh[file.state] = file.sha256
        if fresh:
            try:
                self._remember(fresh)
            except OSError as error:
                _logger.warning("%s: cannot be written (%s): the next build hashes again", self._table, error.strerror)
        return [hashed[path] for path in paths]

    def _read(self) -> dict[FileState, str]:
        """The table, oldest entry first; empty where there is none, and with a warning where it is damaged."""
        try:
            return _parse(self._table)
        except FileNotFoundError:
            return {}
        except (ValueError, RecursionError) as error:
            _logger.warning("%s: is damaged (%s) and made anew: checkpoints are hashed again", self._table, error)
            self._table.unlink(missing_ok=True)
            return {}

    def _remember(self, fresh: dict[FileState, str]) -> None:
        with exclusive(self._lock):
            known = self._read()  # again: others may have written meanwhile
            # A file that changes in place keeps device and inode; what was known of it before is of no use any more.
            replaced = {state[:2] for state in fresh}
            known = {state: sha256 for state, sha256 in known.items() if state[:2] not in replaced} | fresh
            rows = [[*state, sha256] for state, sha256 in known.items()][-MAX_REMEMBERED:]
            temporary = self._table.with_name(f"{self._table.name}.partial")
            temporary.write_text(json.dumps({"format": _FORMAT, "files": rows}), encoding="ascii")
            sync_file(temporary)
            temporary.replace(self._table)


def _hash(path: Path, state: FileState, advance: Callable[[int], None]) -> HashedFile:
    sha256 = hash_file(path, advance)
    if FileState.of(path) != state:
        raise BuildError(f"{path}: changed while it was read: build when nothing writes to it")
    return HashedFile(path, sha256, state)


def _may_be_remembered(state: FileState, started_ns: int) -> bool:
    is_settled = started_ns - state.last_change_ns() > RACY_WINDOW_S * 10**9
    return is_settled and state.size_bytes >= MIN_REMEMBERED_BYTES


def _meter(progress: ProgressCallback, total_bytes: int) -> Callable[[int], None]:
    done_bytes = 0

    def advance(size_bytes: int) -> None:
        nonlocal done_bytes
        done_bytes += size_bytes
        progress(STAGE, min(done_bytes, total_bytes), total_bytes)

    if total_bytes:
        advance(0)
    return advance


def _parse(table: Path) -> dict[FileState, str]:
    """Raises OSError, and ValueError or RecursionError for anything that `_remember` does not write."""
    with table.open("rb") as file:
        data = file.read(_MAX_TABLE_BYTES + 1)
    if len(data) > _MAX_TABLE_BYTES:
        raise ValueError(f"larger than {_MAX_TABLE_BYTES} bytes")
    document: Any = json.loads(data)
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise ValueError(f"not a table of format {_FORMAT}")
    rows = document.get("files")
    if not isinstance(rows, list):
        raise ValueError("its files are no list")
    return dict(_parse_row(row) for row in rows)


def _parse_row(row: Any) -> tuple[FileState, str]:
    if not isinstance(row, list) or len(row) != len(FileState._fields) + 1:
        raise ValueError("a row has another length")
    *numbers, sha256 = row
    if (
        not all(type(number) is int for number in numbers)
        or not isinstance(sha256, str)
        or not _SHA256.fullmatch(sha256)
    ):
        raise ValueError("a row has another type")
    return FileState(*numbers), sha256
