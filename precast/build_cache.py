"""Whether, where and how much built engines are kept: the build cache as the user sets it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from precast.builder.cache.store import BuildCache

DIRECTORY_VARIABLE = "PRECAST_CACHE"
BYTES_PER_GB = 10**9
DEFAULT_MAX_GB = 50.0
DEFAULT_DISK_SHARE = 0.25


@dataclass(frozen=True)
class BuildCacheConfig:
    """The build cache of ``LLM(enable_build_cache=...)``; the names are TensorRT-LLM's.

    Attributes:
        cache_root: its directory, of its own. None: $PRECAST_CACHE, else $XDG_CACHE_HOME/precast/builds, else
            ~/.cache/precast/builds.
        max_records: most engines; None: any number.
        max_cache_storage_gb: most bytes, in units of 10^9. None: 50, or a quarter of the disk if that is less.
    """

    cache_root: str | os.PathLike[str] | None = None
    max_records: int | None = None
    max_cache_storage_gb: float | None = None

    def __post_init__(self) -> None:
        if self.cache_root is not None and not os.fspath(self.cache_root):
            raise ValueError("cache_root must be a path or None, got an empty string")
        if self.max_records is not None and self.max_records < 1:
            raise ValueError(f"max_records must be at least 1, got {self.max_records}")
        if self.max_cache_storage_gb is not None and not 0 <= self.max_cache_storage_gb < float("inf"):
            raise ValueError(f"max_cache_storage_gb must be finite and not negative, got {self.max_cache_storage_gb}")

    @property
    def directory(self) -> Path:
        """Where the cache is, now that the environment is as it is."""
        return Path(self.cache_root).expanduser() if self.cache_root is not None else default_directory()

    @property
    def max_bytes(self) -> int:
        """The limit, with the default worked out."""
        if self.max_cache_storage_gb is not None:
            return int(self.max_cache_storage_gb * BYTES_PER_GB)
        return min(int(DEFAULT_MAX_GB * BYTES_PER_GB), int(_disk_bytes(self.directory) * DEFAULT_DISK_SHARE))


def default_directory() -> Path:
    """$PRECAST_CACHE, else the place that the XDG Base Directory Specification gives."""
    if named := os.environ.get(DIRECTORY_VARIABLE):
        return Path(named).expanduser()
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(xdg) if Path(xdg).is_absolute() else Path.home() / ".cache"  # the specification ignores relative ones
    return root / "precast" / "builds"


def to_cache_config(value: bool | Mapping[str, object] | BuildCacheConfig | None) -> BuildCacheConfig | None:
    """``enable_build_cache`` in any of its forms; None: no cache. Raises ValueError, TypeError."""
    if isinstance(value, BuildCacheConfig):
        return value
    if isinstance(value, Mapping):
        known = [field.name for field in fields(BuildCacheConfig)]
        for name in value:
            if name not in known:
                raise ValueError(f"enable_build_cache has no member {name!r}; known are {', '.join(known)}")
        return BuildCacheConfig(**value)  # type: ignore[arg-type]
    if value is None or isinstance(value, bool):
        return BuildCacheConfig() if value else None
    raise TypeError(
        f"enable_build_cache must be a bool, a BuildCacheConfig or a mapping of its members, got {type(value).__name__}"
    )


def open_build_cache(config: BuildCacheConfig) -> BuildCache:
    """Nothing is touched or made before it is used."""
    from precast.builder.cache.store import BuildCache

    return BuildCache(config.directory, max_bytes=config.max_bytes, max_entries=config.max_records)


def _disk_bytes(directory: Path) -> int:
    existing = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).total
