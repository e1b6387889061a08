"""The part of ``LLM`` that generates."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, overload

from precast import batches
from precast.configs import KvCacheRetentionConfig
from precast.futures import RequestFuture
from precast.generation import GeneratedRequest
from precast.inputs import PreprocessedInputs, PromptInput, is_single, to_prompts
from precast.llm_base import LoadedEngine
from precast.making_requests import RequestMaker
from precast.outputs import RequestOutput
from precast.progress import RequestBar
from precast.request_settings import make_settings
from precast.sampling_params import SamplingParams
from precast.tokenizer import Tokenizer


class GenerateMethods(LoadedEngine):
    """Prompts in, outputs out."""

    _tokenizer: Tokenizer | None
    _default_sampling: SamplingParams
    _max_queue_size: int | None
    _request_ids: Iterator[int]

    # A str is a sequence of str too, which mypy points out: the first signature that fits is the one meant.
    @overload
    def generate(  # type: ignore[overload-overlap]
        self,
        inputs: PromptInput,
        sampling_params: SamplingParams | None = None,
        use_tqdm: bool | Callable[..., Any] = True,
        *,
        kv_cache_retention_config: KvCacheRetentionConfig | None = None,
        cache_salt: str | None = None,
        priority: float = 0.5,
        timeout_s: float | None = None,
    ) -> RequestOutput: ...

    @overload
    def generate(
        self,
        inputs: Sequence[PromptInput],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool | Callable[..., Any] = True,
        *,
        kv_cache_retention_config: KvCacheRetentionConfig | Sequence[KvCacheRetentionConfig | None] | None = None,
        cache_salt: str | Sequence[str | None] | None = None,
        priority: float | Sequence[float] = 0.5,
        timeout_s: float | Sequence[float | None] | None = None,
    ) -> list[RequestOutput]: ...

    def generate(
        self,
        inputs: PromptInput | Sequence[PromptInput],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool | Callable[..., Any] = True,
        *,
        kv_cache_retention_config: KvCacheRetentionConfig | Sequence[KvCacheRetentionConfig | None] | None = None,
        cache_salt: str | Sequence[str | None] | None = None,
        priority: float | Sequence[float] = 0.5,
        timeout_s: float | Sequence[float | None] | None = None,
    ) -> RequestOutput | list[RequestOutput]:
        """Continues prompts; all of them run side by side.

        What follows ``inputs``, but ``use_tqdm``, may be one for all or one each.

        Args:
            inputs: a text, token ids, {"prompt": text} or {"prompt_token_ids": ids}, or a list of these. The dicts
                may hold a "cache_salt".
            sampling_params: None: the checkpoint's generation_config.
            use_tqdm: show a progress bar; or a callable that is used in place of ``tqdm.tqdm``.
            kv_cache_retention_config: how long cached blocks of the prompt and of the output are worth keeping.
            cache_salt: cached prompt blocks are shared only with requests of the same salt.
            priority: in [0, 1]; higher ones start first.
            timeout_s: seconds after which an unfinished request ends with finish_reason "timeout".

        Returns:
            A RequestOutput for one prompt, a list in the order of the prompts for a list.

        Raises:
            ValueError: a prompt or a parameter that cannot work; nothing has run then.
            NativeError: the engine failed a request; the others were cancelled.
            RuntimeError: after :meth:`shutdown`.
        """
        settings = (priority, cache_salt, kv_cache_retention_config, timeout_s)
        requests = self._make_requests(inputs, sampling_params, settings)
        engine = self._running_engine()
        with RequestBar(len(requests), use_tqdm) as bar, contextlib.closing(batches.run(engine, requests)) as ended:
            for request in ended:
                bar.request_done(request.result())
        outputs = [request.result() for request in requests]
        return outputs[0] if is_single(inputs) else outputs

    def generate_async(
        self,
        inputs: PromptInput,
        sampling_params: SamplingParams | None = None,
        streaming: bool = False,
        *,
        kv_cache_retention_config: KvCacheRetentionConfig | None = None,
        cache_salt: str | None = None,
        priority: float = 0.5,
        timeout_s: float | None = None,
    ) -> RequestFuture:
        """Begins to continue one prompt; see RequestFuture for how to wait for it, or to follow it.

        May be called from any thread, inside and outside of event loops.

        Args:
            inputs: one prompt, as in :meth:`generate`, or what :meth:`preprocess` made of it.
            sampling_params: as in :meth:`generate`.
            streaming: iteration gives tokens as they come; else only the end.
            kv_cache_retention_config, cache_salt, priority, timeout_s: as in :meth:`generate`.

        Raises:
            ValueError: the prompt or a parameter cannot work.
            QueueFullError: as many requests are waiting as ``max_queue_size`` allows.
            RuntimeError: after :meth:`shutdown`.
        """
        if not is_single(inputs):
            raise ValueError("generate_async takes one prompt; use generate, or call it once for each")
        settings = (priority, cache_salt, kv_cache_retention_config, timeout_s)
        (request,) = self._make_requests(inputs, sampling_params, settings, streaming=streaming)
        future = RequestFuture(request, self)
        try:
            batches.submit(self._running_engine(), [request])
        except BaseException:  # Ctrl-C just before the caller has the future
            request.cancel()
            raise
        return future

    def stream(
        self, inputs: PromptInput, sampling_params: SamplingParams | None = None
    ) -> Generator[RequestOutput, None, None]:
        """Continues one prompt and gives snapshots as tokens arrive, as ``generate_async(..., streaming=True)`` does.

        Leaving the loop early cancels the request.

        Raises:
            ValueError, NativeError, RuntimeError: as :meth:`generate`, when the first output is asked for.
        """
        if not is_single(inputs):
            raise ValueError("stream takes one prompt; use generate for several")
        future = self.generate_async(inputs, sampling_params, streaming=True)
        try:
            yield from future
        finally:
            future.abort()

    @overload
    def preprocess(  # type: ignore[overload-overlap]
        self, inputs: PromptInput, sampling_params: SamplingParams | None = None
    ) -> PreprocessedInputs: ...

    @overload
    def preprocess(
        self,
        inputs: Sequence[PromptInput],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[PreprocessedInputs]: ...

    def preprocess(
        self,
        inputs: PromptInput | Sequence[PromptInput],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> PreprocessedInputs | list[PreprocessedInputs]:
        """Tokenises, cuts and checks prompts, and runs nothing.

        Args:
            inputs: as in :meth:`generate`.
            sampling_params: add_special_tokens and truncate_prompt_tokens count.

        Raises:
            ValueError: a prompt that cannot work.
            RuntimeError: after :meth:`shutdown`.
        """
        prompts = to_prompts(inputs)
        made = self._request_maker().preprocess(prompts, self._params_of_each(sampling_params, len(prompts)))
        return made[0] if is_single(inputs) else made

    def get_default_sampling_params(self) -> SamplingParams:
        """The sampling parameters that the checkpoint's generation_config.json asks for."""
        return self._default_sampling

    def _make_requests(
        self,
        inputs: PromptInput | Sequence[PromptInput],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        settings: tuple[Any, Any, Any, Any] = (0.5, None, None, None),
        *,
        streaming: bool = False,
    ) -> list[GeneratedRequest]:
        """``settings`` are the arguments of ``make_settings``."""
        prompts = to_prompts(inputs)
        params = self._params_of_each(sampling_params, len(prompts))
        if self._max_queue_size is not None:
            _check_queue_size(params, self._max_queue_size)
        return self._request_maker().make(prompts, params, make_settings(len(prompts), *settings), streaming=streaming)

    def _request_maker(self) -> RequestMaker:
        return RequestMaker(self._tokenizer, self._running_engine().info, self._request_ids)

    def _params_of_each(
        self, given: SamplingParams | Sequence[SamplingParams] | None, count: int
    ) -> Sequence[SamplingParams]:
        return _one_each(self._default_sampling if given is None else given, count)


def _check_queue_size(params: Sequence[SamplingParams], max_queue_size: int) -> None:
    for each in params:
        if each.n > max_queue_size:
            raise ValueError(f"n must be at most max_queue_size ({max_queue_size}), got {each.n}: it would never start")


def _one_each(params: SamplingParams | Sequence[SamplingParams], count: int) -> list[SamplingParams]:
    each = [params] * count if isinstance(params, SamplingParams) else list(params)
    for one in each:
        if not isinstance(one, SamplingParams):
            raise TypeError(f"sampling_params must be SamplingParams or a sequence of them, got {type(one).__name__}")
    if len(each) != count:
        raise ValueError(f"{len(each)} sampling_params for {count} prompts: give one for all, or one each")
    return each
