"""The key of an engine in the build cache: SHA-256 of a description of everything that its bytes depend on.

    files       of the checkpoint that go into the engine: role -> name -> SHA-256
    options     of the build: `plan` and `partition`, with every "auto" decided, and `given`, what these do not replace
    backend     its name
    toolchain   precast and the packages whose code makes bytes

There is no path, no time and no host in it: a copied checkpoint, or the same one on another machine, has the same key.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from precast.builder.build_config import BuildConfig
from precast.builder.cache.content_hashes import HashedFile
from precast.builder.plan import DEVICE_OPTIONS, BuildPlan
from precast.checkpoints.engine_manifest import ENGINE_FORMAT
from precast.checkpoints.ranks.partition import Partition
from precast.plugins import SUPPORTED_LAYOUTS, SUPPORTED_OPS
from precast.version import __version__

KEY_FORMAT = 1
PACKAGES = ("ml_dtypes", "numpy", "onnx", "onnx-ir", "protobuf")  # they round, pack and serialise
# The engine keeps the plan's or the partition's value of these, and not what was given.
RESOLVED_OPTIONS = ("dtype", "kv_cache_dtype", "tensor_parallel_size", "pipeline_parallel_size")
_ROOMS = ("builder", "checkpoints", "plugins")
_NO_VALUE = "nothing"

Description = Mapping[str, Any]


def describe_build(
    weights: Sequence[HashedFile],
    companions: Sequence[HashedFile],
    plan: BuildPlan,
    partition: Partition,
    config: BuildConfig,
    backend: str,
) -> Description:
    """What the bytes of the engine depend on, as JSON values.

    Every field of the plan and of the config is in it, those of a future version too, so that none is forgotten.

    Raises:
        ModuleNotFoundError: a package that building needs is not installed.
    """
    given = {name: value for name, value in asdict(config).items() if name not in (*RESOLVED_OPTIONS, *DEVICE_OPTIONS)}
    description = {
        "format": KEY_FORMAT,
        "files": {"weights": _by_name(weights), "companions": _by_name(companions)},
        "options": {"plan": asdict(plan), "partition": asdict(partition), "given": given},
        "backend": backend,
        "toolchain": toolchain(),
    }
    result: Description = json.loads(_canonical(description))  # lists for tuples, as it comes back from a file
    return result


def cache_key(description: Description) -> str:
    """64 hexadecimal digits."""
    return hashlib.sha256(_canonical(description)).hexdigest()


def toolchain() -> dict[str, Any]:
    """What makes the bytes. Two states of precast under one version number, as while it is worked on, differ too."""
    return {
        "precast": __version__,
        "sources": _hash_sources(),
        "engine_format": ENGINE_FORMAT,
        "ops": list(SUPPORTED_OPS),
        "layouts": list(SUPPORTED_LAYOUTS),
        **{package: _package_version(package) for package in PACKAGES},
    }


def differences(description: Description, other: Description) -> list[str]:
    """What differs, e.g. `options.plan.dtype (there "float32", here "bfloat16")`, with `other` as "there"."""
    here, there = dict(_leaves(description)), dict(_leaves(other))
    return [
        f"{name} (there {there.get(name, _NO_VALUE)}, here {here.get(name, _NO_VALUE)})"
        for name in dict.fromkeys((*here, *there))
        if here.get(name) != there.get(name)
    ]


def _by_name(files: Sequence[HashedFile]) -> dict[str, str]:
    return {file.path.name: file.sha256 for file in files}


def _canonical(value: object) -> bytes:
    """Equal values give equal bytes. Raises TypeError for what JSON does not have."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def _hash_sources() -> str:
    """SHA-256 of the Python files of the rooms that make an engine: their paths inside the package, and their bytes."""
    package = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for room in _ROOMS:
        for path in sorted((package / room).rglob("*.py")):
            data = path.read_bytes()
            digest.update(f"{path.relative_to(package).as_posix()} {len(data)}\n".encode())
            digest.update(data)
    return digest.hexdigest()


def _package_version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError as error:
        raise ModuleNotFoundError(
            f"building an engine needs {package}, which is not installed: pip install 'precast[build]'", name=package
        ) from error


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Dotted name -> JSON text, of everything that is not an object."""
    if isinstance(value, dict):
        for key, member in value.items():
            yield from _leaves(member, f"{name}.{key}" if name else key)
    else:
        yield name, json.dumps(value)
