"""Writes an engine directory: beside its place, engine.json last, synced, then renamed.

    with EngineWriter("engine") as writer:
        with writer.open_weights("rank0/weights.bin", specs) as weights:
            weights.write(...)
        ...                                     # other files are written below writer.path
        manifest = writer.commit(manifest)      # hashes and lists the files

Leaving the block without a commit, by an exception or not, leaves nothing behind.
"""

import errno
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from precast.checkpoints.durable_files import (
    copy_bytes,
    hash_file,
    os_errors_named,
    reserve,
    sync_directory,
    sync_file,
)
from precast.checkpoints.engine_checks import is_path_inside
from precast.checkpoints.engine_dir import is_engine_dir, read_manifest
from precast.checkpoints.engine_errors import EngineError, EngineExistsError, EngineIOError
from precast.checkpoints.engine_manifest import (
    MANIFEST_NAME,
    UNLISTED_NAMES,
    EngineManifest,
    FileEntry,
)
from precast.checkpoints.staging_directory import StagingDirectory
from precast.checkpoints.weights_index import PLAIN_LAYOUT, TensorSpec
from precast.checkpoints.weights_reader import read_weights_index
from precast.checkpoints.weights_writer import WeightsWriter

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FILE_MODE = 0o644  # whatever the umask: the same build gives the same directory
_DIRECTORY_MODE = 0o755


class EngineWriter:
    """A context manager that makes one engine directory, or nothing.

    An OSError of a file below `path`, raised anywhere in the block, leaves it as EngineIOError.
    """

    def __init__(self, output_dir: str | os.PathLike[str], *, overwrite_engine: bool = False) -> None:
        """Touches nothing until the block is entered. `overwrite_engine` allows to replace an engine, nothing else."""
        self.output_dir = Path(output_dir)
        self._overwrite = overwrite_engine
        self._target = Path(os.path.realpath(output_dir))
        self._weights: dict[str, WeightsWriter] = {}
        self._added: dict[str, FileEntry] = {}
        self._committed = False

    @property
    def path(self) -> Path:
        """Where to write: a directory that takes the name `output_dir` at the commit."""
        return self._staging.path

    def __enter__(self) -> "EngineWriter":
        try:
            replaces = self._check_target()
            self._staging = StagingDirectory(self._target)
            try:
                if replaces:
                    self._check_exchange()
            except BaseException:
                self._staging.discard()
                raise
        except OSError as error:
            raise EngineIOError(f"{self.output_dir}: cannot be written: {error.strerror} ({error.filename})") from error
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

    def add_weights(self, path: str, entry: FileEntry) -> None:
        """Take over a weights file that another process wrote at the relative `path` and hashed."""
        self._added[path] = entry

    def copy_file(self, source: Path, path: str) -> None:
        """Copy a file to the relative `path`."""
        target = self._new_file(path)
        with source.open("rb") as reader, target.open("xb") as writer, os_errors_named(target):
            size_bytes = os.fstat(reader.fileno()).st_size
            reserve(writer, size_bytes)
            copy_bytes(reader, writer, size_bytes)

    def commit(self, manifest: EngineManifest) -> EngineManifest:
        """List, hash and sync every file below `path`, write engine.json, and give the directory its name.

        `manifest.files` is replaced. Returns the manifest as written. Raises ValueError where manifest and files
        contradict each other, EngineExistsError, OSError.
        """
        manifest = replace(
            manifest,
            files={path: self._entry(path) for path in self._list_files() if path not in UNLISTED_NAMES},
        )
        manifest.check_listed()
        self._check_layouts(manifest)
        self.publish(manifest, manifest.to_json())
        return manifest

    def publish(self, manifest: EngineManifest, engine_json: bytes) -> None:
        """The second half of `commit`, for files that `manifest` lists already; `engine_json` is its text.

        Raises EngineExistsError, OSError.
        """
        weights = {rank.weights for rank in manifest.ranks}
        for path in self._list_files():
            self._seal(path, drop_cache=path in weights)
        (self.path / MANIFEST_NAME).write_bytes(engine_json)
        self._seal(MANIFEST_NAME)
        for directory, _, _ in os.walk(self.path):
            Path(directory).chmod(_DIRECTORY_MODE)
            sync_directory(Path(directory))
        self._rename()

    def _check_target(self) -> bool:
        """Whether there is an engine to be replaced. Raises EngineExistsError where the place is taken otherwise."""
        if self._target.is_mount():
            raise EngineExistsError(
                f"{self.output_dir}: is a mount point, which no rename can replace: choose a directory below it"
            )
        if not self._target.exists():
            return False
        if Path.cwd().is_relative_to(self._target):
            raise EngineExistsError(
                f"{self.output_dir}: the current directory would be replaced: go to another, or choose a new directory"
            )
        if self._target.is_dir() and not any(self._target.iterdir()):
            return False
        if not is_engine_dir(self._target):
            raise EngineExistsError(f"{self.output_dir}: exists and is not an engine: choose another directory")
        if not self._overwrite:
            raise EngineExistsError(
                f"{self.output_dir}: holds an engine already: allow overwriting, or choose another directory"
            )
        try:
            foreign = _find_foreign_files(self._target)
        except EngineError as error:
            raise EngineExistsError(
                f"{self.output_dir}: cannot tell what replacing it would delete: {error}"
            ) from error
        if foreign:
            raise EngineExistsError(
                f"{self.output_dir}: holds files that its engine.json does not list ({', '.join(foreign[:3])}), and "
                "replacing the engine would delete them: move them away first"
            )
        return True

    def _check_exchange(self) -> None:
        """Raise EngineExistsError now, not after hours of work, where the engine cannot be replaced in one step."""
        if not self._staging.can_exchange():
            raise EngineExistsError(
                f"{self.output_dir}: this file system cannot exchange two directories in one step, so the engine there "
                "cannot be replaced safely: write to another directory, or delete it first"
            )

    def _new_file(self, path: str) -> Path:
        if not is_path_inside(path) or path == MANIFEST_NAME:
            raise ValueError(f"{path!r} must be a relative path inside the engine directory, and not its manifest")
        target = self.path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def _list_files(self) -> list[str]:
        found = []
        for directory, directories, names in os.walk(self.path):
            for name in names + directories:
                path = Path(directory, name)
                if path.is_symlink() or not (path.is_file() or path.is_dir()):
                    raise ValueError(f"{path}: an engine holds regular files and directories only")
            found += [Path(directory, name).relative_to(self.path).as_posix() for name in names]
        return sorted(found)

    def _entry(self, path: str) -> FileEntry:
        if path in self._added:
            return self._added[path]
        if path in self._weights:
            entry = self._weights[path].entry
            if entry is None:
                raise ValueError(f"{path!r} was opened and not finished")
            return entry
        return FileEntry((self.path / path).stat().st_size, hash_file(self.path / path))

    def _check_layouts(self, manifest: EngineManifest) -> None:
        used = {cache.layout for rank in manifest.ranks for cache in rank.kv_caches}
        indices = [weights.index for weights in self._weights.values()]
        indices += [read_weights_index(self.path / path) for path in self._added]
        used |= {tensor.spec.layout for index in indices for tensor in index.tensors}
        missing = sorted(used - {PLAIN_LAYOUT, *manifest.requires})
        if missing:
            raise ValueError(f"requires must name every layout that the engine uses, {', '.join(missing)} is missing")

    def _seal(self, path: str, *, drop_cache: bool = False) -> None:
        (self.path / path).chmod(_FILE_MODE)
        sync_file(self.path / path, drop_cache=drop_cache)

    def _rename(self) -> None:
        replaces = self._check_target()  # again: hours may have passed
        self._staging.publish(replace=replaces)
        self._committed = True

    def _is_ours(self, error: OSError) -> bool:
        if error.filename is None:
            return error.errno in _NO_SPACE
        path = Path(os.fsdecode(error.filename))
        return path.is_relative_to(self.path) or path == self._target.parent

    def _io_error(self, error: OSError) -> EngineIOError:
        """`error` under the name that the file would have had. Called after everything was deleted."""
        path = Path(os.fsdecode(error.filename or self.path))
        if path.is_relative_to(self.path):
            path = self.output_dir / path.relative_to(self.path)
        message = f"{path}: cannot be written: {error.strerror}"
        if error.errno in _NO_SPACE:
            existing = next(parent for parent in self._target.parents if parent.exists())
            free = shutil.disk_usage(existing).free
            message += f"; {free} bytes are free there after cleaning up: free more space or choose another directory"
        return EngineIOError(message)


def _find_foreign_files(engine_dir: Path) -> list[str]:
    """Files in an engine directory that its manifest does not list."""
    known = {*read_manifest(engine_dir).files, *UNLISTED_NAMES}
    found = (path for path in engine_dir.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted({path.relative_to(engine_dir).as_posix() for path in found} - known)
