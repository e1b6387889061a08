"""The front door: a checkpoint or an engine directory in, text out."""

from __future__ import annotations

import itertools
import logging
import os
import weakref
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from precast.build_cache import BuildCacheConfig
from precast.checkpoints.engine_dir import check_files, copy_engine, is_engine_dir, read_manifest, verify_files
from precast.generation import GeneratedRequest, make_requests
from precast.inputs import PromptInput, is_single, to_prompts
from precast.options import Options, check_backend, sort_options
from precast.outputs import RequestOutput
from precast.progress import RequestBar
from precast.runtime import Engine, EngineOptions
from precast.sampling_params import SamplingParams
from precast.tokenizer import Tokenizer, read_generation_config

if TYPE_CHECKING:
    from precast.builder.cache.entry import CachedEngine

logger = logging.getLogger("precast")

# Distribution parameters of generation_config.json, and their names and neutral values here.
_SAMPLING_DEFAULTS = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "max_new_tokens": "max_tokens",
}
_UNSUPPORTED_DEFAULTS = {"min_p": 0.0, "repetition_penalty": 1.0}


class LLM:
    """A language model that was built ahead of time, ready to generate.

    Args:
        model: an engine directory, which is loaded; or a Hugging Face checkpoint directory or hub id, which is
            built first, into a temporary directory unless ``workspace`` names one or ``enable_build_cache`` keeps
            it. :meth:`save` keeps the engine.
        tokenizer: a folder with another ``tokenizer.json``.
        tokenizer_mode: "auto" only; there is one tokenizer library, the fast one.
        skip_tokenizer_init: prompts are token ids and outputs have no text.
        trust_remote_code: must stay False. No code of a checkpoint is ever run.
        tensor_parallel_size: ranks to split the model over; 1.
        dtype: of the weights in a build: "auto", "float32", "bfloat16", or "float16" (stored as bfloat16).
        revision: of a hub id.
        tokenizer_revision: of a hub id's tokenizer; must be ``revision`` or None.
        backend: None or "onnxruntime".
        **options: for building, ``kv_cache_dtype`` ("auto", "float32", "bfloat16") and ``tokens_per_block``.
            ``enable_build_cache``, False by default, keeps what is built for the next time, in a cache of limited
            size: True, or a BuildCacheConfig or a mapping of its members for where and how much. The engine is used
            where it lies in the cache, or copied to ``workspace``; an engine as ``model`` needs no cache.
            For running, ``num_threads``, ``max_batch_size``, ``max_num_tokens``, ``kv_cache_bytes``; see
            ``precast_engine_options_t`` in precast.h. For both, ``max_seq_len``. ``verify=True`` compares every
            file of an engine with its hash before loading. vLLM's names ``max_num_seqs``,
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
        _check_arguments(tokenizer_mode, trust_remote_code, tensor_parallel_size, revision, tokenizer_revision)
        check_backend(backend)
        self._engine: Engine | None = None
        self._remove_temporary: weakref.finalize[..., LLM] | None = None
        self._cached: CachedEngine | None = None
        self._request_ids = itertools.count()
        if is_engine_dir(Path(model)):
            _refuse_build_options(model, dtype, revision, sorted_options)
            self.engine_dir = Path(model)
        else:
            self.engine_dir = self._build(model, dtype, revision, sorted_options)
        try:
            self._load(tokenizer, skip_tokenizer_init, sorted_options)
        except BaseException:
            self.shutdown()
            raise

    # ------------------------------------------------------------------------------------------------ generating

    # A str is a sequence of str too, which mypy points out: the first signature that fits is the one meant.
    @overload
    def generate(  # type: ignore[overload-overlap]
        self,
        inputs: PromptInput,
        sampling_params: SamplingParams | None = None,
        use_tqdm: bool | Callable[..., Any] = True,
    ) -> RequestOutput: ...

    @overload
    def generate(
        self,
        inputs: Sequence[PromptInput],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool | Callable[..., Any] = True,
    ) -> list[RequestOutput]: ...

    def generate(
        self,
        inputs: PromptInput | Sequence[PromptInput],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool | Callable[..., Any] = True,
    ) -> RequestOutput | list[RequestOutput]:
        """Continues prompts; all of them run side by side.

        Args:
            inputs: a text, token ids, {"prompt": text} or {"prompt_token_ids": ids}, or a list of these.
            sampling_params: one for all, or one each. None: the checkpoint's generation_config.
            use_tqdm: show a progress bar; or a callable that is used in place of ``tqdm.tqdm``.

        Returns:
            A RequestOutput for one prompt, a list in the order of the prompts for a list.

        Raises:
            ValueError: a prompt or a parameter that cannot work; nothing has run then.
            NativeError: the engine failed a request; the others were cancelled.
            RuntimeError: after :meth:`shutdown`.
        """
        requests = self._make_requests(inputs, sampling_params)
        try:
            self._submit(requests)
            with RequestBar(len(requests), use_tqdm) as bar:
                for request in requests:
                    for _ in request.stream():
                        pass
                    bar.request_done(request.output)
        except BaseException:  # KeyboardInterrupt above all: what was submitted must not go on behind the caller's back
            for request in requests:
                request.cancel()
            raise
        outputs = [request.output for request in requests]
        return outputs[0] if is_single(inputs) else outputs

    def stream(
        self, inputs: PromptInput, sampling_params: SamplingParams | None = None
    ) -> Generator[RequestOutput, None, None]:
        """Continues one prompt and gives its RequestOutput, the same object again and again, as tokens arrive.

        Leaving the loop early cancels the request. With ``n`` > 1 the outputs come one after the other.

        Raises:
            ValueError, NativeError, RuntimeError: as :meth:`generate`, when the first output is asked for.
        """
        if not is_single(inputs):
            raise ValueError("stream takes one prompt; use generate for several")
        (request,) = self._make_requests(inputs, sampling_params)
        try:
            self._submit([request])
            yield from request.stream()
        finally:
            request.cancel()

    def get_default_sampling_params(self) -> SamplingParams:
        """The sampling parameters that the checkpoint's generation_config.json asks for."""
        return self._default_sampling

    def _make_requests(
        self,
        inputs: PromptInput | Sequence[PromptInput],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
    ) -> list[GeneratedRequest]:
        prompts = to_prompts(inputs)
        params = _one_each(self._default_sampling if sampling_params is None else sampling_params, len(prompts))
        return make_requests(
            prompts, params, tokenizer=self._tokenizer, info=self._running_engine().info, ids=self._request_ids
        )

    def _submit(self, requests: Sequence[GeneratedRequest]) -> None:
        engine = self._running_engine()
        for request in requests:  # before they run, so that they can be cancelled whenever Ctrl-C comes
            request.handles = engine.reserve(len(request.native_requests))
        natives = [native for request in requests for native in request.native_requests]
        engine.submit(natives, [handle for request in requests for handle in request.handles])

    def _running_engine(self) -> Engine:
        if self._engine is None:
            raise RuntimeError("LLM is shutting down")
        return self._engine

    # ----------------------------------------------------------------------------------- building, loading, keeping

    def _build(self, model: str | os.PathLike[str], dtype: str, revision: str | None, options: Options) -> Path:
        if Path(model).is_dir() and not (Path(model) / "config.json").exists():
            raise ValueError(
                f"{model} is neither an engine (it has no engine.json) nor a checkpoint (it has no config.json)"
            )
        build_options = {"dtype": dtype, "max_seq_len": options.max_seq_len, "revision": revision, **options.build}
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
        self._default_sampling = _default_sampling(self.engine_dir / "tokenizer")
        self._engine = Engine(self.engine_dir, EngineOptions(max_seq_len=options.max_seq_len, **options.runtime))
        if options.max_seq_len is not None and self._engine.info["max_seq_len"] < options.max_seq_len:
            most = self._engine.info["max_seq_len"]
            logger.warning("max_seq_len=%d is more than this engine can do: %d is used", options.max_seq_len, most)
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

    def get_stats(self) -> dict[str, Any]:
        """Counters of this moment: see ``precast_engine_stats``."""
        return self._running_engine().stats()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.shutdown()

    def __reduce__(self) -> str:
        raise TypeError("an LLM holds a running engine and cannot be pickled; save it and load the directory instead")


def _check_arguments(
    tokenizer_mode: str,
    trust_remote_code: bool,
    tensor_parallel_size: int,
    revision: str | None,
    tokenizer_revision: str | None,
) -> None:
    if tokenizer_mode != "auto":
        raise ValueError(f"tokenizer_mode must be 'auto', got {tokenizer_mode!r}")
    if trust_remote_code:
        raise ValueError("trust_remote_code must be False: Precast reads a checkpoint's data and never runs its code")
    if tensor_parallel_size != 1:
        raise ValueError(f"tensor_parallel_size must be 1 in this version, got {tensor_parallel_size}")
    if tokenizer_revision not in (None, revision):
        raise ValueError(f"tokenizer_revision must be revision ({revision!r}) or None, got {tokenizer_revision!r}")


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


def _one_each(params: SamplingParams | Sequence[SamplingParams], count: int) -> list[SamplingParams]:
    each = [params] * count if isinstance(params, SamplingParams) else list(params)
    for one in each:
        if not isinstance(one, SamplingParams):
            raise TypeError(f"sampling_params must be SamplingParams or a sequence of them, got {type(one).__name__}")
    if len(each) != count:
        raise ValueError(f"{len(each)} sampling_params for {count} prompts: give one for all, or one each")
    return each


def _default_sampling(folder: Path) -> SamplingParams:
    config = read_generation_config(folder)
    given = {ours: config[theirs] for theirs, ours in _SAMPLING_DEFAULTS.items() if config.get(theirs) is not None}
    for name, neutral in _UNSUPPORTED_DEFAULTS.items():
        value = config.get(name)
        if value is not None and value != neutral:
            logger.warning("generation_config asks for %s=%s, which this version does not apply", name, value)
    try:
        params = SamplingParams(**given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'generation_config.json'}: {error}") from error
    if given:
        said = ", ".join(f"{name}={value}" for name, value in given.items())
        logger.info("sampling defaults from the checkpoint's generation_config: %s", said)
    return params
