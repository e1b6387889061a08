"""One of a request's n outputs: from the engine's events to text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from precast.detokenizer import IncrementalDetokenizer
from precast.outputs import CompletionOutput, Logprob
from precast.runtime import EngineRequest, FinishedEvent, FinishReason, TokenEvent, TokenLogprob
from precast.stop_strings import StopStringMatcher


@dataclass
class Completion:
    """An output and what fills it in.

    Attributes:
        output: what the caller sees.
        native_request: what the engine is asked.
        hidden_ids: tokens that have no place in the text, because they end it.
        reported_ids: ids that become the stop_reason.
        min_tokens: output tokens in which no stop string ends.
        detokenizer: None: there is no text.
        stop_strings: None: there are none.
        decode_token: the text of one token, for logprobs; None: there is none.
    """

    output: CompletionOutput
    native_request: EngineRequest
    hidden_ids: frozenset[int] = frozenset()
    reported_ids: frozenset[int] = frozenset()
    min_tokens: int = 0
    detokenizer: IncrementalDetokenizer | None = None
    stop_strings: StopStringMatcher | None = None
    decode_token: Callable[[int], str] | None = None

    def has_stopped(self) -> bool:
        """Whether a stop string has ended it: no further token counts."""
        return self.stop_strings is not None and self.stop_strings.found is not None

    def accept_token(self, event: TokenEvent) -> None:
        self.output.token_ids.append(event.token_id)
        if event.logprobs:
            self._accept_logprobs(event.logprobs)
        if self.detokenizer is not None and event.token_id not in self.hidden_ids:
            self._show(self.detokenizer.push(event.token_id))

    def finish(self, event: FinishedEvent) -> None:
        """Raises the error that ended it, if one did before a stop string."""
        if event.error is not None and not self.has_stopped():
            raise event.error
        if self.detokenizer is not None:
            self._show(self.detokenizer.finish())
        if self.stop_strings is not None:
            self.output.text += self.stop_strings.finish()
            if self.stop_strings.found is not None:
                self.output.finish_reason = FinishReason.STOP.value
                self.output.stop_reason = self.stop_strings.found
                return
        self.output.finish_reason = event.reason.value
        if event.reason is FinishReason.STOP and event.stop_token_id in self.reported_ids:
            self.output.stop_reason = event.stop_token_id

    def _show(self, piece: str) -> None:
        if self.stop_strings is not None:
            piece = self.stop_strings.push(piece, may_stop=self.output.length > self.min_tokens)
        self.output.text += piece

    def _accept_logprobs(self, logprobs: Sequence[TokenLogprob]) -> None:
        decode = self.decode_token
        if self.output.logprobs is None:
            self.output.logprobs, self.output.cumulative_logprob = [], 0.0
        self.output.logprobs.append(
            {token_id: Logprob(logprob, rank, decode and decode(token_id)) for token_id, logprob, rank in logprobs}
        )
        self.output.cumulative_logprob = (self.output.cumulative_logprob or 0.0) + logprobs[0].logprob
