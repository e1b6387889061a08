"""A build through the cache, in three steps: hash the checkpoint, describe the build, take the engine or make it.

The checkpoint is opened again for a build, after it was hashed, and its files are looked at once more when the engine
is complete: an engine never gets the key of other content than it was built from. What makes an engine is imported
where one has to be made; to find one takes neither ONNX nor a network.
"""

import errno
import logging
from pathlib import Path

from precast.builder.build_config import BuildConfig
from precast.builder.cache.content_hashes import HashedFile
from precast.builder.cache.entry import CachedEngine
from precast.builder.cache.key import describe_build
from precast.builder.cache.store import BuildCache
from precast.builder.errors import BuildCacheError, BuildError
from precast.builder.plan import plan_build, plan_ranks
from precast.builder.progress import ProgressCallback, ignore_progress
from precast.checkpoints.checkpoint import Checkpoint, open_checkpoint
from precast.checkpoints.engine_errors import EngineIOError

_logger = logging.getLogger(__name__)


def build_cached(
    checkpoint: Checkpoint,
    cache: BuildCache,
    config: BuildConfig = BuildConfig(),  # noqa: B008 - frozen
    *,
    backend: str = "onnxruntime",
    num_processes: int | None = None,
    progress: ProgressCallback = ignore_progress,
    source: str = "",
) -> CachedEngine:
    """The engine that `build_engine` would build, from the cache or built into it. The caller releases it.

    Args:
        checkpoint: Open; it stays the caller's to close.
        cache: Where engines are kept.
        config: See BuildConfig.
        backend: One of backends.BACKENDS.
        num_processes: As of `build_engine`.
        progress: Told the bytes of what is hashed, then those of weights that are done.
        source: The name of the model, for people who look into the cache.

    Raises:
        BuildCacheError: the cache cannot be used.
        BuildError: as `build_engine`; or the checkpoint changes meanwhile.
        EngineIOError: a file cannot be written.
        OSError: a file of the checkpoint cannot be read.
    """
    weights, companions = _hash_files(checkpoint, cache, progress)
    plan = plan_build(checkpoint.config, config, backend)
    partition = plan_ranks(checkpoint.config, config, checkpoint.partition, backend)
    if plan.device is not None and "current" in plan.device.targets:
        raise BuildCacheError(
            "a plan for the target current is of this machine's GPU, which the build cache cannot tell from others: "
            "build without the cache"
        )
    description = describe_build(weights, companions, plan, partition, config, backend)

    def build(output_dir: Path) -> None:
        _logger.info("build cache: miss, %s", cache.explain_miss(description))
        _build(checkpoint, output_dir, config, backend, num_processes, progress)
        for file in (*weights, *companions):
            file.check_unchanged()

    try:
        cached = cache.get_or_build(description, build, source=source)
    except EngineIOError as error:
        raise _with_advice(error, cache) from error.__cause__
    if cached.is_hit:
        _logger.info("build cache: hit, %s", cached.engine_dir)
    return cached


def _hash_files(
    checkpoint: Checkpoint, cache: BuildCache, progress: ProgressCallback
) -> tuple[list[HashedFile], list[HashedFile]]:
    """The weight files, and the files that an engine keeps beside its weights."""
    paths = checkpoint.weight_files()
    hashed = cache.content_hashes().hash([*paths, *checkpoint.companion_files()], progress)
    return hashed[: len(paths)], hashed[len(paths) :]


def _build(
    checkpoint: Checkpoint,
    output_dir: Path,
    config: BuildConfig,
    backend: str,
    num_processes: int | None,
    progress: ProgressCallback,
) -> None:
    from precast.builder.build import build_engine

    with open_checkpoint(checkpoint.path, tokenizer=checkpoint.tokenizer) as hashed:
        if hashed.config != checkpoint.config:
            raise BuildError(f"{checkpoint.path}: its config changed while it was opened: build again")
        build_engine(hashed, output_dir, config, backend=backend, num_processes=num_processes, progress=progress)


def _with_advice(error: EngineIOError, cache: BuildCache) -> EngineIOError:
    """On a full disk, what else there is to delete."""
    cause = error.__cause__
    size_bytes = sum(entry.size_bytes for entry in cache.entries())
    if not isinstance(cause, OSError) or cause.errno not in (errno.ENOSPC, errno.EDQUOT) or not size_bytes:
        return error
    return EngineIOError(f"{error}; `precast cache clear` frees up to {size_bytes} bytes of the build cache")
