"""Checkpoint -> engine directory: the builder with its inputs opened and its progress drawn."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from precast.progress import BytesBar

if TYPE_CHECKING:
    from precast.build_cache import BuildCacheConfig
    from precast.builder.cache.entry import CachedEngine
    from precast.checkpoints.engine_manifest import EngineManifest
    from precast.checkpoints.ranks.partition import Partition


def build(
    model: str | os.PathLike[str],
    output_dir: Path,
    *,
    revision: str | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    num_processes: int | None = None,
    overwrite: bool = False,
    dump_graphs: Path | None = None,
    backend: str = "onnxruntime",
    **options: Any,
) -> EngineManifest:
    """Builds the checkpoint ``model`` (a directory or hub id) into ``output_dir``.

    Args:
        tokenizer: a directory whose tokenizer goes into the engine instead of the checkpoint's own.
        num_processes: ranks that are built at a time; None: as many as there are processors.
        backend: "onnxruntime", "onnxruntime-cuda" or "tensorrt".
        options: the fields of a BuildConfig.

    Raises:
        ValueError: an option or a checkpoint that cannot be built.
        EngineError: the directory cannot be written.
        ModuleNotFoundError: precast was installed without what building needs.
    """
    try:
        from precast.builder.build import build_engine
        from precast.builder.build_config import BuildConfig
        from precast.checkpoints.checkpoint import open_checkpoint
    except ModuleNotFoundError as error:
        raise _not_installed(error) from error

    _check_num_processes(num_processes)
    config = BuildConfig(**options)
    with BytesBar() as bar, open_checkpoint(model, revision=revision, tokenizer=tokenizer) as checkpoint:
        return build_engine(
            checkpoint,
            output_dir,
            config,
            backend=backend,
            num_processes=num_processes,
            dump_graphs=dump_graphs,
            progress=bar,
            overwrite=overwrite,
        )


def build_in_cache(
    model: str | os.PathLike[str],
    cache: BuildCacheConfig,
    *,
    revision: str | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    num_processes: int | None = None,
    backend: str = "onnxruntime",
    **options: Any,
) -> CachedEngine:
    """The engine that :func:`build` would build, in the build cache, where it may lie already. The caller releases it.

    Raises:
        ValueError, EngineError, ModuleNotFoundError: as :func:`build`; BuildCacheError, a ValueError, where the cache
            cannot be used.
    """
    try:
        from precast.builder.build_config import BuildConfig
        from precast.builder.cache.cached_build import build_cached
        from precast.checkpoints.checkpoint import open_checkpoint
    except ModuleNotFoundError as error:
        raise _not_installed(error) from error
    from precast.build_cache import open_build_cache

    _check_num_processes(num_processes)
    config = BuildConfig(**options)
    with BytesBar() as bar, open_checkpoint(model, revision=revision, tokenizer=tokenizer) as checkpoint:
        return build_cached(
            checkpoint,
            open_build_cache(cache),
            config,
            backend=backend,
            num_processes=num_processes,
            progress=bar,
            source=os.fspath(model),
        )


def build_through_cache(
    model: str | os.PathLike[str], output_dir: Path, cache: BuildCacheConfig, *, overwrite: bool = False, **options: Any
) -> tuple[EngineManifest, bool]:
    """Builds into the build cache, unless the engine lies there, and copies it to ``output_dir``.

    It is a copy, and no hard link: whoever edits or truncates the engine at ``output_dir`` would change that in the
    cache, and kill who has it mapped. File systems that can (Btrfs, XFS) let both share their blocks until then.

    Args:
        model, cache, options: of :func:`build_in_cache`.
        output_dir, overwrite: of :func:`build`.

    Returns:
        The manifest, and whether the engine lay in the cache.

    Raises:
        ValueError, EngineError, ModuleNotFoundError: as :func:`build_in_cache`.
    """
    from precast.checkpoints.engine_dir import copy_engine
    from precast.checkpoints.engine_writer import EngineWriter

    with EngineWriter(output_dir, overwrite_engine=overwrite):
        pass  # a place that is taken or cannot be written is an error now, and not after the build
    with build_in_cache(model, cache, **options) as cached:
        return copy_engine(cached.engine_dir, output_dir, overwrite_engine=overwrite), cached.is_hit


def refit(
    engine: Path,
    model: str | os.PathLike[str],
    output_dir: Path,
    *,
    revision: str | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> EngineManifest:
    """Writes ``engine`` with the weights of the checkpoint ``model`` into ``output_dir``.

    Raises:
        ValueError: the engine's weights cannot be exchanged, or the checkpoint's network is another.
        EngineError: the engine cannot be read, or the new one not written.
        ModuleNotFoundError: precast was installed without what building needs.
    """
    try:
        from precast.builder.refit import refit_engine
        from precast.checkpoints.checkpoint import open_checkpoint
    except ModuleNotFoundError as error:
        raise _not_installed(error) from error

    with BytesBar() as bar, open_checkpoint(model, revision=revision, tokenizer=tokenizer) as checkpoint:
        return refit_engine(engine, checkpoint, output_dir, progress=bar, overwrite=overwrite)


def convert(
    model: str | os.PathLike[str],
    output_dir: Path,
    *,
    tensor_parallel_size: int,
    pipeline_parallel_size: int,
    revision: str | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
) -> Partition:
    """Divides the checkpoint ``model`` (a directory or hub id) into one file for each rank, in ``output_dir``.

    Raises:
        ValueError: sizes that do not divide the model, a checkpoint that cannot be read, or a place that is taken or
            cannot be written.
        ModuleNotFoundError: precast was installed without what building needs.
    """
    try:
        from precast.checkpoints.checkpoint import open_checkpoint
        from precast.checkpoints.ranks.convert import convert_checkpoint
        from precast.checkpoints.ranks.mapping import Mapping
    except ModuleNotFoundError as error:
        raise _not_installed(error) from error

    mapping = Mapping.of(tensor_parallel_size, pipeline_parallel_size)
    with BytesBar() as bar, open_checkpoint(model, revision=revision, tokenizer=tokenizer) as checkpoint:
        return convert_checkpoint(checkpoint, output_dir, mapping, progress=bar)


def _check_num_processes(num_processes: int | None) -> None:
    if num_processes is not None and num_processes < 1:
        raise ValueError(f"num_processes must be at least 1, got {num_processes}")


def _not_installed(error: ModuleNotFoundError) -> ModuleNotFoundError:
    return ModuleNotFoundError(
        f"building an engine needs {error.name}, which is not installed: pip install 'precast[build]'", name=error.name
    )
