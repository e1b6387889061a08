"""What a request gives back."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class CompletionOutput:
    """One output of a request.

    Attributes:
        index: which of the n outputs.
        text: the decoded output; "" when ``detokenize`` is off. A stop token is not in it.
        token_ids: the output tokens; a stop token is the last one.
        finish_reason: "stop", "length" or "cancelled"; None while the request runs.
        stop_reason: the id of ``stop_token_ids`` that ended the request; None for an end-of-sequence id of the
            model and every other reason.
        seed: what the output was drawn with; None for greedy.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | None = None
    seed: int | None = None

    @property
    def length(self) -> int:
        return len(self.token_ids)


@dataclass
class RequestMetrics:
    """When things happened, in nanoseconds of ``time.monotonic_ns()``."""

    submitted_ns: int
    first_token_ns: int | None = None
    last_token_ns: int | None = None

    @property
    def first_token_s(self) -> float | None:
        """From submission to the first token, in seconds; None while there is none."""
        return None if self.first_token_ns is None else (self.first_token_ns - self.submitted_ns) / 1e9

    @property
    def decode_s(self) -> float | None:
        """From the first token to the last, in seconds; None while there is none."""
        if self.first_token_ns is None or self.last_token_ns is None:
            return None
        return (self.last_token_ns - self.first_token_ns) / 1e9


@dataclass
class RequestOutput:
    """A prompt and its outputs.

    Attributes:
        request_id: number of the request in this LLM, from 0.
        prompt: the text, where the prompt was one.
        prompt_token_ids: what the model read.
        outputs: ``SamplingParams.n`` of them.
        finished: whether all outputs have ended.
        metrics: times of the first and last token of any output.
    """

    request_id: int
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics
