"""An entry of the build cache: a folder named by its key.

engine/         an engine directory (docs/engine_format.md), never changed
entry.json      description of the build (key.py), and the model's name as it was given: for people only
in_use.lock     locked (flock), shared, by whoever uses the engine
last_use        one number: when it was last used, in nanoseconds since 1970, and later than any use before it
"""

import json
import os
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from precast.builder.cache.file_lock import hold_shared, try_exclusive
from precast.builder.cache.key import Description
from precast.checkpoints.durable_files import os_errors_named, sync_directory, sync_file
from precast.checkpoints.engine_dir import check_files, read_manifest
from precast.checkpoints.engine_errors import EngineError

ENGINE_NAME = "engine"
RECORD_NAME = "entry.json"
IN_USE_NAME = "in_use.lock"
LAST_USE_NAME = "last_use"


@dataclass(frozen=True)
class Entry:
    """An entry as it was when it was looked at.

    Attributes:
        size_bytes: Of all files of the folder.
        last_use_ns: 0 where it is not known, so that the entry is the first to go.
        in_use: Whether a living process holds it.
    """

    path: Path
    size_bytes: int
    last_use_ns: int
    in_use: bool

    @classmethod
    def read(cls, path: Path) -> "Entry":
        """Opens no engine. To be called with the cache's lock held, as it touches the entry's. Raises OSError."""
        with try_exclusive(path / IN_USE_NAME) as free:
            size_bytes = sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir())
            return cls(path, size_bytes, _read_last_use(path / LAST_USE_NAME), not free)

    @property
    def key(self) -> str:
        return self.path.name

    @property
    def engine_dir(self) -> Path:
        return self.path / ENGINE_NAME

    def record(self) -> Mapping[str, Any]:
        """entry.json: `description` and `source`; empty where it cannot be read, for it is only talked about."""
        with suppress(OSError, ValueError):
            record = json.loads((self.path / RECORD_NAME).read_bytes())
            if isinstance(record, dict) and isinstance(record.get("description"), dict):
                return record
        return {}


class CachedEngine:
    """An engine in the cache that stays there until it is released, or this object or the process ends.

    Attributes:
        engine_dir: To be read only.
        is_hit: Whether it was there already.
    """

    def __init__(self, path: Path, *, is_hit: bool) -> None:
        """Raises OSError."""
        self.engine_dir = path / ENGINE_NAME
        self.is_hit = is_hit
        # Closed and not unlocked: a fork that goes on using the engine holds the lock with its copy.
        self.release = weakref.finalize(self, os.close, hold_shared(path / IN_USE_NAME))

    def __enter__(self) -> "CachedEngine":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()


def find_damage(path: Path) -> str | None:
    """What is wrong with the engine of the entry, by the checks that read nothing but the manifest; None: nothing."""
    try:
        check_files(path / ENGINE_NAME, read_manifest(path / ENGINE_NAME))
    except EngineError as error:
        return str(error)
    return None


def write_record(path: Path, description: Description, source: str) -> None:
    """Complete an entry before it gets its name. Raises OSError."""
    record = path / RECORD_NAME
    record.write_text(json.dumps({"description": description, "source": source}, indent=2) + "\n", encoding="ascii")
    sync_file(record)
    sync_directory(path)


def write_last_use(path: Path, now_ns: int) -> None:
    """In place and always as long, so that a full disk is no reason why an engine cannot be used. Raises OSError."""
    with os_errors_named(path / LAST_USE_NAME):
        descriptor = os.open(path / LAST_USE_NAME, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(descriptor, b"%020d\n" % now_ns, 0)
        finally:
            os.close(descriptor)


def _read_last_use(path: Path) -> int:
    """0 where the file is missing or damaged: a power cut may leave it empty."""
    try:
        return max(0, int(path.read_bytes()))
    except (FileNotFoundError, ValueError):
        return 0
