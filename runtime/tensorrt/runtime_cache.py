"""What TensorRT-RTX has compiled on a GPU, kept in the engine for the next time.

    rank0/runtime_cache.bin      one line of JSON that says what it is of, then TensorRT's bytes

It is no part of the engine that was built: the manifest does not list it, and an engine without it, or with one of
another GPU or driver, runs as well, but compiles first.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from precast.checkpoints.engine_dir import replace_file

FILE_NAME = "runtime_cache.bin"


@dataclass(frozen=True)
class CacheKey:
    """What compiled kernels are of.

    Attributes:
        plan_sha256: Of the plan's file, as the manifest has it.
        library: TensorRT and its version.
        gpu: Its name and compute capability.
        driver: What cuDriverGetVersion says, e.g. "13000".
    """

    plan_sha256: str
    library: str
    gpu: str
    driver: str


@dataclass(frozen=True)
class CachePlace:
    """A file, and what it must be of."""

    path: Path
    key: CacheKey


class StaleCacheError(Exception):
    """The file is of something else, or damaged; the message is half a sentence that says of what."""


def read_cache(place: CachePlace) -> bytes | None:
    """TensorRT's bytes; None where there is no file.

    Raises:
        StaleCacheError: they are not of this plan, GPU and driver, or it cannot be read.
    """
    try:
        data = place.path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StaleCacheError(f"cannot be read ({error.strerror})") from error
    line, _, blob = data.partition(b"\n")
    try:
        header: dict[str, Any] = json.loads(line)
        size = int(header.pop("size_bytes"))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise StaleCacheError("cannot be read") from error
    for name, here in asdict(place.key).items():
        if header.get(name) != here:
            raise StaleCacheError(f"is of {name} {header.get(name)}, and this is {here}")
    if len(blob) != size:
        raise StaleCacheError(f"has {len(blob)} bytes of {size}")
    return blob


def write_cache(place: CachePlace, blob: bytes) -> None:
    """Put the file in the place of one that may be there, whole or not at all. Raises EngineIOError."""
    header = json.dumps({**asdict(place.key), "size_bytes": len(blob)}, sort_keys=True).encode("ascii")
    replace_file(place.path, header + b"\n" + blob)
