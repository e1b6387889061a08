"""From prompts and parameters to requests: what the engine is asked, checked before anything is submitted."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from precast.completion import Completion
from precast.detokenizer import IncrementalDetokenizer
from precast.generation import GeneratedRequest
from precast.inputs import PreprocessedInputs, Prompt
from precast.outputs import CompletionOutput, RequestMetrics, RequestOutput
from precast.request_settings import RequestSettings
from precast.runtime import EngineRequest
from precast.sampling_params import SamplingParams
from precast.stop_strings import StopStringMatcher
from precast.tokenizer import Tokenizer

_SMALLEST_FLOAT32 = 2.0**-126  # what is smaller would reach the engine as 0


@dataclass(frozen=True)
class RequestMaker:
    """Makes requests of one engine.

    Attributes:
        tokenizer: None: prompts are token ids and outputs have no text.
        info: what the engine says of itself.
        ids: numbers for requests.
    """

    tokenizer: Tokenizer | None
    info: Mapping[str, Any]
    ids: Iterator[int]

    def make(
        self,
        prompts: Sequence[Prompt],
        params: Sequence[SamplingParams],
        settings: Sequence[RequestSettings] | None = None,
        *,
        streaming: bool = False,
    ) -> list[GeneratedRequest]:
        """Requests for prompts, their parameters, and whatever else they are told.

        Raises:
            ValueError: a prompt or a parameter that cannot work; the message says which.
        """
        preprocessed = self.preprocess(prompts, params)
        return [
            self._make_request(prompt, sampling, each, streaming)
            for prompt, sampling, each in zip(
                preprocessed, params, settings or [RequestSettings()] * len(prompts), strict=True
            )
        ]

    def preprocess(self, prompts: Sequence[Prompt], params: Sequence[SamplingParams]) -> list[PreprocessedInputs]:
        """The prompts as token ids, cut and checked. Raises as :meth:`make`."""
        made = []
        for i, (prompt, sampling) in enumerate(zip(prompts, params, strict=True)):
            token_ids = self._token_ids(prompt, sampling)
            self._check_prompt(token_ids, f"prompt {i}" if len(prompts) > 1 else "the prompt")
            made.append(PreprocessedInputs(token_ids, prompt=prompt.text, cache_salt=prompt.cache_salt))
        return made

    def _token_ids(self, prompt: Prompt, params: SamplingParams) -> list[int]:
        if prompt.token_ids is not None:
            token_ids = list(prompt.token_ids)
        elif self.tokenizer is not None:
            token_ids = self.tokenizer.encode(prompt.text or "", params.add_special_tokens)
        else:
            raise ValueError("a text prompt needs the tokenizer, and skip_tokenizer_init is set: give prompt_token_ids")
        if params.truncate_prompt_tokens is None:
            return token_ids
        keep = params.truncate_prompt_tokens
        return token_ids[-(self.info["max_seq_len"] - 1 if keep == -1 else keep) :]

    def _check_prompt(self, token_ids: Sequence[int], name: str) -> None:
        """What the engine would refuse, said in the words of this interface."""
        max_seq_len = self.info["max_seq_len"]
        if not token_ids:
            raise ValueError(f"{name} is empty: the tokenizer gave no tokens for it")
        if len(token_ids) >= max_seq_len:
            raise ValueError(
                f"{name} has {len(token_ids)} tokens, and max_seq_len {max_seq_len} must hold it and at least "
                "one more: shorten it, set truncate_prompt_tokens, or load with a larger max_seq_len or kv_cache_bytes"
            )
        for position, token_id in enumerate(token_ids):
            if not 0 <= token_id < self.info["vocab_size"]:
                raise ValueError(
                    f"{name} has token id {token_id} at position {position}, "
                    f"outside the vocabulary of {self.info['vocab_size']}"
                )

    def _make_request(
        self, prompt: PreprocessedInputs, params: SamplingParams, settings: RequestSettings, streaming: bool
    ) -> GeneratedRequest:
        now_ns = time.monotonic_ns()
        asked = {
            **self._sampling_arguments(params),
            **_settings_arguments(settings, prompt, now_ns),
            "prompt_token_ids": prompt.prompt_token_ids,
        }
        first_seed = int.from_bytes(os.urandom(8), "little") if params.seed is None else params.seed
        seeds = [first_seed + i if first_seed + i < 2**64 else first_seed + i - 2**64 for i in range(params.n)]
        completions = [self._make_completion(i, params, {**asked, "seed": seed}) for i, seed in enumerate(seeds)]
        output = RequestOutput(
            request_id=next(self.ids),
            prompt=prompt.prompt,
            prompt_token_ids=prompt.prompt_token_ids,
            outputs=[completion.output for completion in completions],
            finished=False,
            metrics=RequestMetrics(submitted_ns=now_ns),
        )
        return GeneratedRequest(output, completions, streaming=streaming)

    def _make_completion(self, index: int, params: SamplingParams, asked: Mapping[str, Any]) -> Completion:
        own_stop_ids = frozenset(params.stop_token_ids or ())
        model_stop_ids = frozenset(self.info["eos_token_ids"] if params.end_id is None else (params.end_id,))
        completion = Completion(
            output=CompletionOutput(index, seed=None if params.greedy else asked["seed"]),
            native_request=EngineRequest(**asked),
            reported_ids=own_stop_ids,
            min_tokens=params.min_tokens,
        )
        if not params.include_stop_str_in_output:
            completion.hidden_ids = own_stop_ids if params.ignore_eos else own_stop_ids | model_stop_ids
        if self.tokenizer is not None:
            completion.decode_token = self.tokenizer.decode_token
        if self.tokenizer is not None and params.detokenize:
            decode = functools.partial(self.tokenizer.decode, skip_special_tokens=params.skip_special_tokens)
            completion.detokenizer = IncrementalDetokenizer(decode, asked["prompt_token_ids"])
        if params.stop:
            completion.stop_strings = StopStringMatcher(
                _strings(params.stop), include=params.include_stop_str_in_output
            )
        return completion

    def _sampling_arguments(self, params: SamplingParams) -> dict[str, Any]:
        """What an EngineRequest is told of ``params``, besides the seed."""
        self._check_vocabulary(params)
        stop_token_ids = tuple(dict.fromkeys(params.stop_token_ids or ()))
        ignore_eos = params.ignore_eos
        if params.end_id is not None and not ignore_eos:  # the engine has no end but its own: it is ignored then
            stop_token_ids, ignore_eos = tuple(dict.fromkeys((*stop_token_ids, params.end_id))), True
        num_logprobs = -1 if params.logprobs is None else params.logprobs
        if params.logprobs == -1 or num_logprobs > self.info["vocab_size"]:
            num_logprobs = self.info["vocab_size"]
        return {
            "max_tokens": params.max_tokens,
            "min_tokens": params.min_tokens,
            "temperature": params.temperature,
            "top_k": max(params.top_k, 0),
            "top_p": max(params.top_p, _SMALLEST_FLOAT32),
            "min_p": params.min_p,
            "repetition_penalty": max(params.repetition_penalty, _SMALLEST_FLOAT32),
            "presence_penalty": params.presence_penalty,
            "frequency_penalty": params.frequency_penalty,
            "num_logprobs": num_logprobs,
            "stop_token_ids": stop_token_ids,
            "ignore_eos": ignore_eos,
            "allowed_token_ids": tuple(params.allowed_token_ids or ()),
            "logit_bias": params.logit_bias or {},
            "bad_words": self._bad_words(_strings(params.bad_words or params.bad or ())),
        }

    def _check_vocabulary(self, params: SamplingParams) -> None:
        vocab_size = self.info["vocab_size"]
        for name, ids in (("allowed_token_ids", params.allowed_token_ids), ("logit_bias", params.logit_bias)):
            for token_id in ids or ():
                if token_id >= vocab_size:
                    raise ValueError(f"{name} must be in the vocabulary of {vocab_size}, got {token_id}")
        if params.stop and self.tokenizer is None:
            raise ValueError(f"stop must be None when skip_tokenizer_init is set, got {params.stop!r}")

    def _bad_words(self, words: Sequence[str]) -> list[tuple[int, ...]]:
        """What a tokenizer may make of each word: at the start of a text, and after a space."""
        if not words:
            return []
        if self.tokenizer is None:
            raise ValueError(f"bad_words must be None when skip_tokenizer_init is set, got {list(words)!r}")
        spelled = (
            tuple(self.tokenizer.encode(space + word.lstrip(), add_special_tokens=False))
            for word in words
            for space in ("", " ")
        )
        return [ids for ids in dict.fromkeys(spelled) if ids]


def _strings(value: str | Sequence[str]) -> Sequence[str]:
    return (value,) if isinstance(value, str) else value


def _settings_arguments(settings: RequestSettings, prompt: PreprocessedInputs, now_ns: int) -> dict[str, Any]:
    """What an EngineRequest is told of ``settings``."""
    if settings.cache_salt is not None and prompt.cache_salt not in (None, settings.cache_salt):
        raise ValueError(
            f"cache_salt is {settings.cache_salt!r}, and the prompt has {prompt.cache_salt!r}: give one of them"
        )
    salt = settings.cache_salt or prompt.cache_salt or ""
    retention = settings.kv_cache_retention_config
    return {
        "priority": settings.priority,
        "cache_salt": salt.encode(),
        "deadline_ns": 0 if settings.timeout_s is None else now_ns + int(settings.timeout_s * 1e9),
        "retention": () if retention is None else retention.to_native(len(prompt.prompt_token_ids)),
    }
