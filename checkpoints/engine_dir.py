"""The engine directory: where builder and runtime meet. docs/engine_format.md is the authority.

    engine.json          manifest, read first                    engine_manifest.py, engine_manifest_reader.py
    rank0/weights.bin    tensors with an index                   weights_index.py, weights_reader.py, weights_writer.py
    verification.json    what is not reproducible: figures, times, toolchain

Reading, checking, verifying and copying are here; engine_writer.py writes. What loading an engine imports is small: the
standard library only, and no hashing.
"""

import json
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

from precast.checkpoints.durable_files import hash_file, sync_directory, sync_file
from precast.checkpoints.engine_errors import CorruptEngineError, EngineIOError, EngineNotFoundError
from precast.checkpoints.engine_json import MAX_JSON_BYTES
from precast.checkpoints.engine_manifest import (
    MANIFEST_NAME,
    VERIFICATION_NAME,
    EngineManifest,
)
from precast.checkpoints.engine_manifest_reader import ANY_RUNTIME, RuntimeSupport, parse_manifest

VerifyProgress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


def is_engine_dir(path: str | os.PathLike[str]) -> bool:
    """Whether the directory has an engine.json. Raises EngineIOError where it may not be looked into."""
    try:
        return (Path(path) / MANIFEST_NAME).is_file()
    except OSError as error:
        raise EngineIOError(f"{path}: cannot look into it: {error.strerror}") from error


def read_manifest(directory: str | os.PathLike[str], support: RuntimeSupport = ANY_RUNTIME) -> EngineManifest:
    """Read and check engine.json; see `parse_manifest`. The files that it lists are not looked at.

    Raises EngineNotFoundError, EngineIOError, CorruptEngineError, UnsupportedEngineError.
    """
    return parse_manifest(read_manifest_bytes(directory), str(Path(directory) / MANIFEST_NAME), support)


def read_manifest_bytes(directory: str | os.PathLike[str]) -> bytes:
    """The bytes of engine.json. Raises EngineNotFoundError, EngineIOError, CorruptEngineError where it is too large."""
    path = Path(directory) / MANIFEST_NAME
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise EngineIOError(f"{path}: not a regular file")
        if status.st_size > MAX_JSON_BYTES:
            raise CorruptEngineError(f"{path}: {status.st_size} bytes, the limit is {MAX_JSON_BYTES}")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _not_an_engine(Path(directory)) from error
    except OSError as error:
        raise EngineIOError(f"{path}: cannot open it: {error.strerror}") from error


def _not_an_engine(directory: Path) -> EngineNotFoundError:
    if not directory.exists():
        return EngineNotFoundError(f"{directory}: no such directory")
    if not directory.is_dir():
        return EngineNotFoundError(f"{directory}: not a directory; an engine is a directory with an engine.json")
    hint = ""
    if (directory / "config.json").exists():
        hint = "; it looks like a Hugging Face checkpoint: build an engine from it first"
    return EngineNotFoundError(f"{directory}: not an engine directory, it has no engine.json{hint}")


def check_files(directory: str | os.PathLike[str], manifest: EngineManifest) -> None:
    """Check that every listed file is a regular file of the listed size. Raises CorruptEngineError, EngineIOError."""
    for name, entry in manifest.files.items():
        path = Path(directory) / name
        try:
            status = path.stat()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise CorruptEngineError(
                f"{path}: missing, engine.json lists it with {entry.size} bytes: copy the engine again or rebuild it"
            ) from error
        except OSError as error:
            raise EngineIOError(f"{path}: cannot read its size: {error.strerror}") from error
        if not stat.S_ISREG(status.st_mode):
            raise CorruptEngineError(f"{path}: not a regular file, engine.json lists it as one")
        if status.st_size != entry.size:
            raise CorruptEngineError(
                f"{path}: is {status.st_size} bytes, engine.json says {entry.size}: copy the engine again or rebuild it"
            )


def verify_files(
    directory: str | os.PathLike[str], manifest: EngineManifest, progress: VerifyProgress | None = None
) -> None:
    """Check every listed file's size and SHA-256, and the index of every weights file. Reads everything.

    Raises CorruptEngineError that names every damaged file, EngineIOError.
    """
    from precast.checkpoints.weights_reader import read_weights_index  # checking sizes does without

    check_files(directory, manifest)
    meter = _Meter(sum(entry.size for entry in manifest.files.values()), progress)
    damaged = []
    for name, entry in manifest.files.items():
        path = Path(directory) / name
        try:
            digest = hash_file(path, meter.advance)
        except OSError as error:
            raise EngineIOError(f"{path}: cannot be read: {error.strerror}") from error
        if digest != entry.sha256:
            damaged.append(f"{name} (SHA-256 is {digest}, engine.json says {entry.sha256})")
    if damaged:
        raise CorruptEngineError(
            f"{directory}: {len(damaged)} of {len(manifest.files)} files are damaged: {', '.join(damaged)}: "
            "copy the engine again or rebuild it"
        )
    for rank in manifest.ranks:
        if rank.weights is not None:
            read_weights_index(Path(directory) / rank.weights)


def copy_engine(
    source_dir: str | os.PathLike[str], output_dir: str | os.PathLike[str], *, overwrite_engine: bool = False
) -> EngineManifest:
    """Copy an engine, complete or not at all: the listed files, engine.json byte for byte, verification.json if any.

    Sizes are checked, hashes are not (`verify_files` does). Returns the manifest. Raises EngineError.
    """
    from precast.checkpoints.engine_writer import EngineWriter  # hashing and more, which loading does without

    source = Path(source_dir)
    engine_json = read_manifest_bytes(source)
    manifest = parse_manifest(engine_json, str(source / MANIFEST_NAME))
    check_files(source, manifest)
    with EngineWriter(output_dir, overwrite_engine=overwrite_engine) as writer:
        for path, entry in manifest.files.items():
            writer.copy_file(source / path, path)
            size = (writer.path / path).stat().st_size
            if size != entry.size:
                raise CorruptEngineError(f"{source / path}: only {size} of {entry.size} bytes could be copied")
        if (source / VERIFICATION_NAME).exists():
            writer.copy_file(source / VERIFICATION_NAME, VERIFICATION_NAME)
        writer.publish(manifest, engine_json)
    return manifest


def write_verification(directory: str | os.PathLike[str], report: Mapping[str, object]) -> None:
    """Write verification.json into an engine, complete or not at all. Raises EngineIOError."""
    data = json.dumps(report, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n"
    replace_file(Path(directory) / VERIFICATION_NAME, data)


def replace_file(path: Path, data: bytes) -> None:
    """Write a file that the manifest does not list into an engine, complete or not at all. Raises EngineIOError."""
    temporary = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        temporary.write_bytes(data)
        temporary.chmod(0o644)
        sync_file(temporary)
        temporary.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise EngineIOError(f"{path}: cannot be written: {error.strerror}") from error


class _Meter:
    """Adds up the bytes read so far and reports them."""

    def __init__(self, total: int, progress: VerifyProgress | None) -> None:
        self._total = total
        self._done = 0
        self._progress = progress

    def advance(self, size_bytes: int) -> None:
        self._done += size_bytes
        if self._progress is not None:
            self._progress(self._done, self._total)
