"""An engine without a model: tests read what it was asked, and say what it answers."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from precast import CompletionOutput, RequestOutput, SamplingParams
from precast.generation import GeneratedRequest
from precast.inputs import to_prompts
from precast.making_requests import RequestMaker
from precast.request_settings import RequestSettings
from precast.runtime import (
    EngineRequest,
    ErrorCode,
    Event,
    FinishedEvent,
    FinishReason,
    QueueFullError,
    TokenEvent,
    TokenLogprob,
)
from precast.tokenizer import Tokenizer
from tests.precast.tiny_tokenizers import EOS_ID

INFO = {"vocab_size": 300, "max_seq_len": 16, "eos_token_ids": [EOS_ID]}


def token(token_id: int, time_ns: int = 1, logprobs: Sequence[TokenLogprob] = ()) -> TokenEvent:
    return TokenEvent(token_id, time_ns, logprobs)


def finished(
    reason: FinishReason = FinishReason.LENGTH,
    stop_token_id: int | None = None,
    error: Exception | None = None,
    **numbers: Any,
) -> FinishedEvent:
    return FinishedEvent(reason, stop_token_id, 1, 1, 0, error, **numbers)


class FakeHandle:
    """A request of the engine."""

    def __init__(self, request_id: int = 0) -> None:
        self.id = request_id
        self.receive: Callable[[Event], None] = lambda event: None
        self.num_cancelled = 0

    def cancel(self) -> bool:
        self.num_cancelled += 1
        return True

    def check_fork(self) -> None:
        pass


class FakeEngine:
    """Takes requests, of which ``max_queue_size`` may be unanswered at a time."""

    def __init__(self, max_queue_size: float = float("inf")) -> None:
        self.asked: list[EngineRequest] = []
        self.handles: list[FakeHandle] = []
        self._num_unanswered = 0
        self._max_queue_size = max_queue_size

    def reserve(self, count: int) -> list[FakeHandle]:
        return [FakeHandle() for _ in range(count)]

    def submit(self, requests: Sequence[EngineRequest], handles: Sequence[FakeHandle]) -> None:
        if self._num_unanswered + len(requests) > self._max_queue_size:
            raise QueueFullError(ErrorCode.RESOURCE_EXHAUSTED, "full")
        self._num_unanswered += len(requests)
        self.asked += requests
        self.handles += handles

    def end(self, index: int, event: FinishedEvent | None = None) -> None:
        """Ends the request that was asked as the ``index``-th."""
        self._num_unanswered -= 1
        self.handles[index].receive(event or finished())


def make(
    inputs: Any,
    tokenizer: Tokenizer | None = None,
    settings: RequestSettings | None = None,
    *,
    streaming: bool = False,
    **params: Any,
) -> list[GeneratedRequest]:
    """Requests as LLM makes them."""
    prompts = to_prompts(inputs)
    maker = RequestMaker(tokenizer, INFO, itertools.count(10))
    sampling = [SamplingParams(**params)] * len(prompts)
    return maker.make(prompts, sampling, [settings or RequestSettings()] * len(prompts), streaming=streaming)


def attach(request: GeneratedRequest) -> list[FakeHandle]:
    """The handles of a request that was just submitted."""
    handles = [FakeHandle() for _ in request.completions]
    request.attach(handles)  # type: ignore[arg-type]
    return handles


def answer(request: GeneratedRequest, *events: Sequence[Event]) -> list[FakeHandle]:
    """Gives events, one list for each of the n outputs."""
    handles = attach(request)
    for handle, each in zip(handles, events, strict=True):
        for event in each:
            handle.receive(event)
    return handles


def result_of(request: GeneratedRequest, *events: Sequence[Event]) -> RequestOutput:
    """The output after the handles have given these events, one list for each of the n outputs."""
    answer(request, *events)
    assert request.done
    return request.result()


def one_of(request: GeneratedRequest, events: Sequence[Event]) -> CompletionOutput:
    (completion,) = result_of(request, events).outputs
    return completion
