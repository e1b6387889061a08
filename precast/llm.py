"""The front door: a checkpoint or an engine directory in, text out."""

from __future__ import annotations

import itertools
import logging
import os
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from precast.backend_choice import GPU_BACKENDS, backend_to_build, check_backend, describe_choice, is_chosen
from precast.build_cache import BuildCacheConfig
from precast.checkpoints.engine_dir import check_files, copy_engine, is_engine_dir, read_manifest, verify_files
from precast.defaults import read_default_sampling
from precast.field_checks import to_integer
from precast.llm_generate import GenerateMethods
from precast.llm_stats import StatsMethods
from precast.options import Options, sort_options
from precast.runtime import Engine, EngineOptions, LogLevel
from precast.tokenizer import Tokenizer

if TYPE_CHECKING:
    from precast.builder.cache.entry import CachedEngine

logger = logging.getLogger("precast")


class LLM(GenerateMethods, StatsMethods):
    """A language model that was built ahead of time, ready to generate.

    Args:
        model: an engine directory, which is loaded; or a Hugging Face checkpoint directory or hub id, which is
            built first, into a temporary directory unless ``workspace`` names one or ``enable_build_cache`` keeps
            it. :meth:`save` keeps the engine.
        tokenizer: a folder with another ``tokenizer.json``; where an engine is built, it goes into that.
        tokenizer_mode: "auto" only; there is one tokenizer library, the fast one.
        skip_tokenizer_init: prompts are token ids and outputs have no text.
        trust_remote_code: must stay False. No code of a checkpoint is ever run.
        tensor_parallel_size: ranks that share every layer. Rank 0 is this process; each other rank is a process of its
            own, which ends with this one. An engine has the number it was built for.
        dtype: of the weights in a build: "auto", "float32", "bfloat16", or "float16" (stored as bfloat16).
        revision: of a hub id.
        tokenizer_revision: of a hub id's tokenizer; must be ``revision`` or None.
        backend: "onnxruntime", which runs on the CPU or, with ``device="cuda"``, on NVIDIA GPUs; or "tensorrt", for
            GPUs. There each rank has a process of its own. None: what the engine was built for; where one is built,
            "onnxruntime". An engine for GPUs is built for ``max_batch_size`` and ``max_num_tokens``, where given.
        **options: ``device``, "cpu" or "cuda"; None: what the engine was built for, else what the backend runs on. For
            building, ``kv_cache_dtype`` ("auto", "float32", "bfloat16") and ``tokens_per_block``.
            ``enable_build_cache``, False by default, keeps what is built for the next time, in a cache of limited
            size: True, or a BuildCacheConfig or a mapping of its members for where and how much. The engine is used
            where it lies in the cache, or copied to ``workspace``; an engine as ``model`` needs no cache.
            For running, ``num_threads``, ``max_batch_size``, ``max_num_tokens``, ``kv_cache_bytes``; see
            ``precast_engine_options_t`` in precast.h; ``scheduler_config`` (a SchedulerConfig), ``max_queue_size``
            (requests that may wait for their first step), ``iter_stats_max_iterations`` and ``rank_timeout_s`` (after
            which a rank without progress counts as hung). For both, ``max_seq_len``, ``kv_cache_config`` (a
            KvCacheConfig) and ``pipeline_parallel_size``, stages that the layers are divided into. ``verify=True``
            compares every file of an engine with its hash before loading. vLLM's names ``max_num_seqs``,
            ``max_num_batched_tokens``, ``kv_cache_memory_bytes`` and ``max_model_len`` are understood.

    Raises:
        ValueError: an argument that is unknown or cannot work, or a checkpoint that cannot be built.
        EngineError, NativeError: an engine that cannot be loaded.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        tokenizer: str | os.PathLike[str] | None = None,
        tokenizer_mode: str = "auto",
        skip_tokenizer_init: bool = False,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        revision: str | None = None,
        tokenizer_revision: str | None = None,
        backend: str | None = None,
        **options: Any,
    ) -> None:
        sorted_options = sort_options(options)
        if not os.fspath(model):
            raise ValueError("model must be a path or a hub id, got an empty string")
        _check_arguments(tokenizer_mode, trust_remote_code, revision, tokenizer_revision)
        to_integer("tensor_parallel_size", tensor_parallel_size, 1)
        device = sorted_options.device
        check_backend(backend, device)
        self._engine: Engine | None = None
        self._remove_temporary: weakref.finalize[..., LLM] | None = None
        self._cached: CachedEngine | None = None
        self._request_ids = itertools.count()
        if is_engine_dir(Path(model)):
            _refuse_build_options(model, dtype, revision, sorted_options)
            _check_built(Path(model), tensor_parallel_size, sorted_options, backend)
            self.engine_dir = Path(model)
        else:
            build_options = {
                "dtype": dtype,
                "max_seq_len": sorted_options.max_seq_len,
                "tensor_parallel_size": tensor_parallel_size,
                "pipeline_parallel_size": sorted_options.pipeline_parallel_size,
                "revision": revision,
                "tokenizer": tokenizer,
                "backend": backend_to_build(backend, device),
                **sorted_options.build,
            }
            if build_options["backend"] in GPU_BACKENDS:
                limits = ("max_batch_size", "max_num_tokens")
                build_options |= {name: value for name in limits if (value := sorted_options.runtime.get(name))}
            self.engine_dir = self._build(model, sorted_options, build_options)
        try:
            self._load(tokenizer, skip_tokenizer_init, sorted_options)
        except BaseException:
            self.shutdown()
            raise

    # ----------------------------------------------------------------------------------- building, loading, keeping

    def _build(
        self,
        model: str | os.PathLike[str],
        options: Options,
        build_options: dict[str, Any],
    ) -> Path:
        if Path(model).is_dir() and not (Path(model) / "config.json").exists():
            raise ValueError(
                f"{model} is neither an engine (it has no engine.json) nor a checkpoint (it has no config.json)"
            )
        if options.build_cache is not None:
            return self._build_in_cache(model, options.build_cache, options.workspace, build_options)
        return self._build_outside(model, options.workspace, build_options)

    def _build_in_cache(
        self,
        model: str | os.PathLike[str],
        cache: BuildCacheConfig,
        workspace: str | os.PathLike[str] | None,
        build_options: dict[str, Any],
    ) -> Path:
        from precast.building import build_in_cache, build_through_cache

        if workspace is not None:
            target = Path(workspace) / "engine"
            build_through_cache(model, target, cache, overwrite=True, **build_options)
            return target
        self._cached = build_in_cache(model, cache, **build_options)
        return self._cached.engine_dir

    def _build_outside(
        self,
        model: str | os.PathLike[str],
        workspace: str | os.PathLike[str] | None,
        build_options: dict[str, Any],
    ) -> Path:
        import tempfile

        from precast.building import build

        folder = workspace
        if folder is None:
            folder = tempfile.mkdtemp(prefix="precast-")
            self._remove_temporary = weakref.finalize(self, _remove_folder, folder, os.getpid())
        target = Path(folder) / "engine"
        try:
            build(model, target, overwrite=workspace is not None, **build_options)
        except BaseException:
            self.shutdown()
            raise
        return target

    def _load(self, tokenizer: str | os.PathLike[str] | None, skip_tokenizer_init: bool, options: Options) -> None:
        manifest = read_manifest(self.engine_dir)
        check_files(self.engine_dir, manifest)
        if options.verify:
            verify_files(self.engine_dir, manifest)
        folder = Path(tokenizer) if tokenizer is not None else self.engine_dir / "tokenizer"
        self._tokenizer = None if skip_tokenizer_init else Tokenizer(folder)  # is read beside the rest from now on
        self._default_sampling = read_default_sampling(self.engine_dir / "tokenizer")
        native_options = EngineOptions(max_seq_len=options.max_seq_len, log=_log, **options.runtime)
        self._max_queue_size = native_options.max_queue_size
        self._keeps_stats = bool(native_options.iteration_stats_size)
        self._keeps_kv_events = bool(native_options.kv_events_size)
        self._engine = Engine(self.engine_dir, native_options)
        if self._tokenizer is not None:
            self._tokenizer.wait()  # a damaged file is an error of loading, not of the first prompt

    def save(self, engine_dir: str | os.PathLike[str]) -> None:
        """Writes everything that is needed to run, tokenizer and all, into one directory.

        An engine that is there already is replaced at once when the new one is whole.

        Raises:
            EngineError: ``engine_dir`` holds something that is no engine, or the disk is full; nothing is left then.
            RuntimeError: after :meth:`shutdown`, which removes an engine that was only built for this object.
        """
        self._running_engine()
        copy_engine(self.engine_dir, Path(engine_dir), overwrite_engine=True)

    def shutdown(self) -> None:
        """Cancels what runs and releases the engine. Doing it again changes nothing."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.shutdown()
        if self._remove_temporary is not None:
            self._remove_temporary()
        if self._cached is not None:
            self._cached.release()

    # --------------------------------------------------------------------------------------------------- looking

    @property
    def tokenizer(self) -> Tokenizer | None:
        """None with ``skip_tokenizer_init``."""
        return self._tokenizer

    @property
    def info(self) -> dict[str, Any]:
        """What was loaded, as of this moment: see ``precast_engine_info``."""
        return self._running_engine().read_info()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.shutdown()

    def __reduce__(self) -> str:
        raise TypeError("an LLM holds a running engine and cannot be pickled; save it and load the directory instead")


def _check_arguments(
    tokenizer_mode: str,
    trust_remote_code: bool,
    revision: str | None,
    tokenizer_revision: str | None,
) -> None:
    if tokenizer_mode != "auto":
        raise ValueError(f"tokenizer_mode must be 'auto', got {tokenizer_mode!r}")
    if trust_remote_code:
        raise ValueError("trust_remote_code must be False: Precast reads a checkpoint's data and never runs its code")
    if tokenizer_revision not in (None, revision):
        raise ValueError(f"tokenizer_revision must be revision ({revision!r}) or None, got {tokenizer_revision!r}")


def _check_built(engine: Path, tensor_parallel_size: int, options: Options, backend: str | None) -> None:
    """Sizes and the backend given with an engine must be its own; 1 and None stand for whatever these are."""
    manifest = read_manifest(engine)
    if not is_chosen(manifest.backend, backend, options.device):
        choice = describe_choice(backend, options.device)
        asked = " on ".join(name for name in (backend, options.device) if name is not None)
        raise ValueError(
            f"{engine} was built for backend {manifest.backend}, and {asked} was asked for: leave it out, or build "
            f"another engine: precast build CHECKPOINT --output DIR {choice}"
        )
    mapping = manifest.mapping
    for name, given in (
        ("tensor_parallel_size", tensor_parallel_size),
        ("pipeline_parallel_size", options.pipeline_parallel_size),
    ):
        built = getattr(mapping, name)
        if given not in (1, built):
            raise ValueError(
                f"{engine} was built for {name} {built}, and {given} was asked for: leave it out, or build another "
                f"engine: precast build CHECKPOINT --output DIR --{name.replace('_', '-')} {given}"
            )


def _remove_folder(folder: str, owner_pid: int) -> None:
    import shutil

    if os.getpid() == owner_pid:  # a fork ends with a copy of this object, and its parent still has the folder
        shutil.rmtree(folder, ignore_errors=True)


def _refuse_build_options(model: str | os.PathLike[str], dtype: str, revision: str | None, options: Options) -> None:
    given = dict(options.build)
    if dtype != "auto":
        given["dtype"] = dtype
    if revision is not None:
        given["revision"] = revision
    if given:
        flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in sorted(given.items()))
        raise ValueError(
            f"{model} is an engine, built already: {', '.join(sorted(given))} cannot change it. "
            f"Build another one: precast build CHECKPOINT --output DIR {flags}"
        )
    if options.workspace is not None:
        raise ValueError(f"{model} is an engine, built already: workspace is where a checkpoint is built, leave it out")


_LOG_LEVELS: dict[int, int] = {
    LogLevel.INFO: logging.INFO,
    LogLevel.WARNING: logging.WARNING,
    LogLevel.ERROR: logging.ERROR,
}


def _log(level: int, message: str) -> None:
    logger.log(_LOG_LEVELS.get(level, logging.WARNING), "%s", message)
