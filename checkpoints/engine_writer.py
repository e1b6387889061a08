"""Writes an engine directory: beside its place, engine.json last, synced, then renamed. docs/engine_format.md, "Writing".

    with EngineWriter("engine") as writer:
        with writer.open_weights("rank0/weights.bin", specs) as weights:
            weights.write(...)
        ...                                     # other files are written below writer.path
        manifest = writer.commit(manifest)      # hashes and lists the files

Leaving the block without a commit, by an exception or not, leaves nothing behind.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from precast.checkpoints.durable_files import copy_bytes, os_errors_named, reserve, sync_directory, sync_file
from precast.checkpoints.engine_dir import find_foreign_files, is_engine_dir
from precast.checkpoints.engine_errors import EngineError, EngineExistsError, EngineIOError
from precast.checkpoints.engine_manifest import (
    MANIFEST_NAME,
    UNLISTED_NAMES,
    EngineManifest,
    FileEntry,
    is_path_inside,
)
from precast.checkpoints.staging_directory import StagingDirectory
from precast.checkpoints.weights_index import PLAIN_LAYOUT, TensorSpec
from precast.checkpoints.weights_writer import WeightsWriter

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FILE_MODE = 0o644  # whatever the umask: the same build gives the same directory
_DIRECTORY_MODE = 0o755


class EngineWriter:
    """A context manager that makes one engine directory, or nothing.

    An OSError of a file below `path`, raised anywhere in the block, leaves it as EngineIOError.
    """

    def __init__(self, output_dir: str | os.PathLike[str], *, overwrite_engine: bool = False) -> None:
        """Nothing is touched before the block is entered. `overwrite_engine` allows to replace an engine, and nothing else."""
        self.output_dir = Path(output_dir)
        self._overwrite = overwrite_engine
        self._target = Path(os.path.realpath(output_dir))
        self._weights: dict[str, WeightsWriter] = {}
        self._committed = False

    @property
    def path(self) -> Path:
        """Where to write: a directory that takes the name `output_dir` at the commit."""
        return self._staging.path

    def __enter__(self) -> "EngineWriter":
        replaces = self._check_target()
        try:
            self._staging = StagingDirectory(self._target)
        except OSError as error:
            raise EngineIOError(f"{self.output_dir}: cannot be written: {error.strerror} ({error.filename})") from error
        if replaces and not self._staging.can_exchange():
            self._staging.discard()
            raise EngineExistsError(
                f"{self.output_dir}: this file system cannot exchange two directories in one step, so the engine "
                "there cannot be replaced safely: write to another directory, or delete it first"
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._committed:
            return
        self._staging.discard()
        if isinstance(error, OSError) and self._is_ours(error):
            raise self._io_error(error) from error

    def open_weights(self, path: str, specs: Sequence[TensorSpec]) -> WeightsWriter:
        """Start the weights file at the relative `path`."""
        self._weights[path] = WeightsWriter(self._new_file(path), specs)
        return self._weights[path]

    def copy_file(self, source: Path, path: str) -> None:
        """Copy a file to the relative `path`."""
        target = self._new_file(path)
        with source.open("rb") as reader, target.open("xb") as writer, os_errors_named(target):
            size_bytes = os.fstat(reader.fileno()).st_size
            reserve(writer, size_bytes)
            copy_bytes(reader, writer, size_bytes)

    def commit(self, manifest: EngineManifest) -> EngineManifest:
        """List, hash and sync every file below `path`, write engine.json, and give the directory its name.

        `manifest.files` is replaced. Returns the manifest as written. Raises ValueError where the manifest and the files
        contradict each other, EngineExistsError, OSError.
        """
        manifest = replace(manifest, files={path: self._hash(path) for path in self._list_files()})
        manifest.check_listed()
        self._check_layouts(manifest)
        self.publish(manifest.to_json())
        return manifest

    def publish(self, engine_json: bytes) -> None:
        """The end of `commit`, for a directory whose engine.json is known. Raises EngineExistsError, OSError."""
        synced = {path for path, weights in self._weights.items() if weights.entry is not None}
        for path in self._list_files():
            (self.path / path).chmod(_FILE_MODE)
            if path not in synced:
                sync_file(self.path / path, drop_cache=path.endswith("weights.bin"))
        (self.path / MANIFEST_NAME).write_bytes(engine_json)
        (self.path / MANIFEST_NAME).chmod(_FILE_MODE)
        sync_file(self.path / MANIFEST_NAME)
        for directory, _, _ in os.walk(self.path):
            Path(directory).chmod(_DIRECTORY_MODE)
            sync_directory(Path(directory))
        self._rename()
        self._committed = True
