"""What a request gives back."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Logprob:
    """Of one token at one place of an output.

    Attributes:
        logprob: natural logarithm of its probability by the raw logits.
        rank: 1 is the most likely token; the smaller id among equals comes first.
        decoded_token: its text; None without a tokenizer.
    """

    logprob: float
    rank: int
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    """One output of a request.

    Attributes:
        index: which of the n outputs.
        text: the decoded output; "" when ``detokenize`` is off. It ends before a stop string or stop token, unless
            ``include_stop_str_in_output`` is set.
        token_ids: the output tokens; a stop token, or the one that completed a stop string, is the last one.
        cumulative_logprob: sum over the output tokens; None unless ``logprobs`` were asked for.
        logprobs: of each output token {token id: Logprob}, the token itself first, then the most likely ones; None
            unless asked for.
        finish_reason: "stop", "length", "timeout" or "cancelled"; None while the request runs.
        stop_reason: the string of ``stop``, or the id of ``stop_token_ids``, that ended the request; None for an
            end-of-sequence id of the model and every other reason.
        seed: what the output was drawn with; None for greedy.
        text_diff, token_ids_diff, logprobs_diff: what is new since the last item of the same iteration; all of it in
            a result.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    seed: int | None = None
    _diff_start: tuple[int, int] = field(default=(0, 0), repr=False, compare=False)
    """Characters and tokens that the diffs leave out."""

    @property
    def length(self) -> int:
        return len(self.token_ids)

    @property
    def text_diff(self) -> str:
        return self.text[self._diff_start[0] :]

    @property
    def token_ids_diff(self) -> list[int]:
        return self.token_ids[self._diff_start[1] :]

    @property
    def logprobs_diff(self) -> list[dict[int, Logprob]] | None:
        return None if self.logprobs is None else self.logprobs[self._diff_start[1] :]

    def snapshot(self, previous: CompletionOutput | None) -> CompletionOutput:
        """A copy of this moment, whose diffs are those to ``previous``."""
        return dataclasses.replace(
            self,
            token_ids=self.token_ids.copy(),
            logprobs=None if self.logprobs is None else self.logprobs.copy(),
            _diff_start=(0, 0) if previous is None else (len(previous.text), len(previous.token_ids)),
        )


@dataclass
class RequestMetrics:
    """When things happened, in nanoseconds of ``time.monotonic_ns()``."""

    submitted_ns: int
    first_scheduled_ns: int | None = None
    """When it left the queue; known when it has ended."""
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
        num_cached_tokens: prompt tokens that no output had to compute, because the KV cache held them already; None
            until all outputs have ended.
    """

    request_id: int
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics
    num_cached_tokens: int | None = None

    def snapshot(self, previous: RequestOutput | None) -> RequestOutput:
        """A copy of this moment, whose outputs' diffs are those to ``previous``."""
        before = [None] * len(self.outputs) if previous is None else previous.outputs
        return dataclasses.replace(
            self,
            outputs=[now.snapshot(then) for now, then in zip(self.outputs, before, strict=True)],
            metrics=dataclasses.replace(self.metrics),
        )
