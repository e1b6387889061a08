"""A tiny world for the build cache: engines that are a manifest and a few bytes, made in no time."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from precast.builder.cache.key import cache_key
from precast.checkpoints.engine_manifest import FileEntry
from tests.checkpoints.tiny_engine import GRAPH, WEIGHTS, tiny_manifest

NEVER_FULL = 1 << 40


def description(name: str) -> dict[str, Any]:
    return {"files": {"weights": {"model.safetensors": name}}, "options": {"dtype": "float32"}}


def key_of(name: str) -> str:
    return cache_key(description(name))


def make_engine(directory: Path, size_bytes: int = 1000) -> None:
    """Complete as far as the cheap checks can see."""
    contents = {GRAPH: b"a graph", WEIGHTS: bytes(size_bytes)}
    for path, data in contents.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(data)
    files = {path: FileEntry(len(data), hashlib.sha256(data).hexdigest()) for path, data in contents.items()}
    (directory / "engine.json").write_bytes(replace(tiny_manifest(), files=files).to_json())


def builder(size_bytes: int = 1000, log: list[Path] | None = None) -> Callable[[Path], None]:
    """A `build` for `get_or_build`, which notes its calls."""

    def build(output_dir: Path) -> None:
        make_engine(output_dir, size_bytes)
        if log is not None:
            log.append(output_dir)

    return build


def must_not_build(output_dir: Path) -> None:
    raise AssertionError(f"built in {output_dir}")


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def left_overs(cache: Path) -> dict[str, list[str]]:
    """What lies where nothing may be left."""
    found = {name: sorted(path.name for path in (cache / name).iterdir()) for name in ("building", "locks", "trash")}
    return {name: names for name, names in found.items() if names}


def flattened(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, member in value.items():
        flat |= flattened(member, f"{prefix}{name}.") if isinstance(member, dict) else {f"{prefix}{name}": member}
    return flat
