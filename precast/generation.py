"""One request of ``LLM.generate``: from a prompt to what the engine is asked, and from events to an output."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from precast.detokenizer import IncrementalDetokenizer
from precast.inputs import Prompt
from precast.outputs import CompletionOutput, RequestMetrics, RequestOutput
from precast.runtime import EngineRequest, FinishedEvent, FinishReason, RequestHandle
from precast.sampling_params import SamplingParams
from precast.tokenizer import Tokenizer

_SMALLEST_FLOAT32 = 2.0**-126  # what is smaller would reach the engine as 0


@dataclass
class _Completion:
    """One of a request's n outputs, and what fills it in."""

    output: CompletionOutput
    native_request: EngineRequest
    stop_ids: frozenset[int]
    """All ids that end it; the engine stops at exactly these."""
    own_stop_ids: frozenset[int]
    """Those that the caller gave."""
    detokenizer: IncrementalDetokenizer | None

    def accept_token(self, token_id: int) -> None:
        self.output.token_ids.append(token_id)
        if self.detokenizer is not None and token_id not in self.stop_ids:
            self.output.text += self.detokenizer.push(token_id)

    def finish(self, event: FinishedEvent) -> None:
        if event.error is not None:
            raise event.error
        if self.detokenizer is not None:
            self.output.text += self.detokenizer.finish()
        self.output.finish_reason = event.reason.value
        if event.reason is FinishReason.STOP and event.stop_token_id in self.own_stop_ids:
            self.output.stop_reason = event.stop_token_id


@dataclass
class GeneratedRequest:
    """A request and the output that its events fill in. Each of its n outputs is a request of the engine."""

    output: RequestOutput
    completions: list[_Completion]
    handles: list[RequestHandle] = field(default_factory=list)

    @property
    def native_requests(self) -> list[EngineRequest]:
        return [completion.native_request for completion in self.completions]

    def stream(self) -> Iterator[RequestOutput]:
        """Takes events until all outputs have ended; gives the output after each.

        Raises:
            NativeError: the engine ended one of the outputs with an error.
        """
        for completion, handle in zip(self.completions, self.handles, strict=True):
            for event in handle.events():
                if isinstance(event, FinishedEvent):
                    completion.finish(event)
                else:
                    completion.accept_token(event.token_id)
                    self._note_time(event.time_ns)
                self.output.finished = all(c.output.finish_reason is not None for c in self.completions)
                yield self.output

    def cancel(self) -> None:
        """Ends what has not ended."""
        for handle in self.handles:
            handle.cancel()

    def _note_time(self, time_ns: int) -> None:
        metrics = self.output.metrics
        metrics.first_token_ns = min(metrics.first_token_ns or time_ns, time_ns)
        metrics.last_token_ns = max(metrics.last_token_ns or time_ns, time_ns)


def make_requests(
    prompts: Sequence[Prompt],
    params: Sequence[SamplingParams],
    *,
    tokenizer: Tokenizer | None,
    info: Mapping[str, Any],
    ids: Iterator[int],
) -> list[GeneratedRequest]:
    """Requests for prompts and their parameters, numbered from ``ids``; ``info`` is what the engine says of itself.

    Raises:
        ValueError: a prompt that cannot work, or text without a tokenizer; the message says which.
    """
    requests = []
    for i, (prompt, sampling) in enumerate(zip(prompts, params, strict=True)):
        token_ids = _token_ids(prompt, sampling, tokenizer, info)
        _check_prompt(token_ids, f"prompt {i}" if len(prompts) > 1 else "the prompt", info)
        requests.append(_make_request(next(ids), prompt, token_ids, sampling, tokenizer, info))
    return requests


def _token_ids(
    prompt: Prompt, params: SamplingParams, tokenizer: Tokenizer | None, info: Mapping[str, Any]
) -> list[int]:
    if prompt.token_ids is not None:
        token_ids = list(prompt.token_ids)
    elif tokenizer is not None:
        token_ids = tokenizer.encode(prompt.text or "", params.add_special_tokens)
    else:
        raise ValueError("a text prompt needs the tokenizer, and skip_tokenizer_init is set: give prompt_token_ids")
    if params.truncate_prompt_tokens is None:
        return token_ids
    keep = params.truncate_prompt_tokens
    return token_ids[-(info["max_seq_len"] - 1 if keep == -1 else keep) :]


def _check_prompt(token_ids: Sequence[int], name: str, info: Mapping[str, Any]) -> None:
    """What the engine would refuse, said in the words of this interface and before anything is submitted."""
    if not token_ids:
        raise ValueError(f"{name} is empty: the tokenizer gave no tokens for it")
    if len(token_ids) >= info["max_seq_len"]:
        raise ValueError(
            f"{name} has {len(token_ids)} tokens, and max_seq_len {info['max_seq_len']} must hold it and at least "
            "one more: shorten it, set truncate_prompt_tokens, or load with a larger max_seq_len or kv_cache_bytes"
        )
    for position, token_id in enumerate(token_ids):
        if not 0 <= token_id < info["vocab_size"]:
            raise ValueError(
                f"{name} has token id {token_id} at position {position}, outside the vocabulary of {info['vocab_size']}"
            )


def _make_request(
    request_id: int,
    prompt: Prompt,
    token_ids: list[int],
    params: SamplingParams,
    tokenizer: Tokenizer | None,
    info: Mapping[str, Any],
) -> GeneratedRequest:
    first_seed = int.from_bytes(os.urandom(8), "little") if params.seed is None else params.seed
    seeds = [first_seed + i if first_seed + i < 2**64 else first_seed + i - 2**64 for i in range(params.n)]
    completions = [_make_completion(i, token_ids, params, seed, tokenizer, info) for i, seed in enumerate(seeds)]
    output = RequestOutput(
        request_id=request_id,
        prompt=prompt.text,
        prompt_token_ids=token_ids,
        outputs=[completion.output for completion in completions],
        finished=False,
        metrics=RequestMetrics(submitted_ns=time.monotonic_ns()),
    )
    return GeneratedRequest(output, completions)


def _make_completion(
    index: int,
    token_ids: list[int],
    params: SamplingParams,
    seed: int,
    tokenizer: Tokenizer | None,
    info: Mapping[str, Any],
) -> _Completion:
    own_stop_ids = frozenset(params.stop_token_ids or ())
    detokenizer = None
    if tokenizer is not None and params.detokenize:
        decode = functools.partial(tokenizer.decode, skip_special_tokens=params.skip_special_tokens)
        detokenizer = IncrementalDetokenizer(decode, token_ids)
    return _Completion(
        output=CompletionOutput(index, seed=None if params.greedy else seed),
        native_request=EngineRequest(
            token_ids,
            max_tokens=params.max_tokens,
            temperature=params.temperature,
            top_k=max(params.top_k, 0),
            top_p=max(params.top_p, _SMALLEST_FLOAT32),
            seed=seed,
            stop_token_ids=tuple(own_stop_ids),
            ignore_eos=params.ignore_eos,
        ),
        stop_ids=own_stop_ids if params.ignore_eos else own_stop_ids | set(info["eos_token_ids"]),
        own_stop_ids=own_stop_ids,
        detokenizer=detokenizer,
    )
