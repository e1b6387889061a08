"""Checkpoint -> engine directory: the builder with its inputs opened and its progress drawn."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from precast.progress import BytesBar

if TYPE_CHECKING:
    from precast.checkpoints.engine_manifest import EngineManifest


def build(
    model: str | os.PathLike[str],
    output_dir: Path,
    *,
    dtype: str = "auto",
    kv_cache_dtype: str = "auto",
    tokens_per_block: int = 16,
    max_seq_len: int | None = None,
    revision: str | None = None,
    overwrite: bool = False,
    dump_graphs: Path | None = None,
) -> EngineManifest:
    """Builds the checkpoint ``model`` (a directory or hub id) into ``output_dir``.

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
        raise ModuleNotFoundError(
            f"building an engine needs {error.name}, which is not installed: pip install 'precast[build]'",
            name=error.name,
        ) from error

    config = BuildConfig(
        dtype=dtype, kv_cache_dtype=kv_cache_dtype, tokens_per_block=tokens_per_block, max_seq_len=max_seq_len
    )
    with BytesBar() as bar, open_checkpoint(model, revision=revision) as checkpoint:
        return build_engine(checkpoint, output_dir, config, dump_graphs=dump_graphs, progress=bar, overwrite=overwrite)
