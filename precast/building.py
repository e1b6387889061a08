"""Checkpoint -> engine directory: the builder with its inputs opened and its progress drawn.

Imported only where something is built, since it loads everything that building needs.
"""

from __future__ import annotations

import os
from pathlib import Path

from precast.builder.build import build_engine
from precast.builder.build_config import BuildConfig
from precast.checkpoints import open_checkpoint
from precast.checkpoints.engine_manifest import EngineManifest
from precast.progress import BuildBar


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
    progress: bool = True,
) -> EngineManifest:
    """Builds the checkpoint ``model`` (a directory or hub id) into ``output_dir``.

    Raises:
        ValueError: an option or a checkpoint that cannot be built.
        EngineError: the directory cannot be written.
    """
    config = BuildConfig(
        dtype=dtype, kv_cache_dtype=kv_cache_dtype, tokens_per_block=tokens_per_block, max_seq_len=max_seq_len
    )
    bar = BuildBar() if progress else None
    try:
        with open_checkpoint(model, revision=revision) as checkpoint:
            return build_engine(
                checkpoint,
                output_dir,
                config,
                dump_graphs=dump_graphs,
                progress=bar,
                overwrite=overwrite,
            )
    finally:
        if bar is not None:
            bar.close()
