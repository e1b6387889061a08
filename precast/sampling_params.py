"""How tokens are chosen, and when a request ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from precast.field_checks import MAX_FLOAT32, to_bool, to_integer, to_number, to_strings, to_token_ids

GREEDY_BELOW_TEMPERATURE = 1e-5

_BOOLS = (
    "ignore_eos",
    "detokenize",
    "skip_special_tokens",
    "add_special_tokens",
    "include_stop_str_in_output",
)


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Sampling and stopping of one request. The defaults are those of TensorRT-LLM's and vLLM's classes.

    Tokens are chosen in this order: ``logprobs`` are taken of the raw logits; ``allowed_token_ids``, ``bad_words``,
    ``min_tokens`` and ``logit_bias`` change logits; then the penalties for repetition, frequency and presence; then
    the largest logit is taken, or temperature, min_p, top_k and top_p say what is drawn from.

    Attributes:
        max_tokens: output tokens; None: as many as fit in max_seq_len.
        temperature: divides the logits; below 1e-5 the largest logit is taken ("greedy").
        top_k: keep the k most likely tokens; 0 and -1 keep all.
        top_p: then keep the fewest tokens that hold at least this much of the probability.
        min_p: keep tokens at least this many times as likely as the most likely one.
        repetition_penalty: divides positive logits, and multiplies negative ones, of tokens in prompt or output.
        presence_penalty: subtracted from the logits of tokens in the output.
        frequency_penalty: the same, once per occurrence.
        logit_bias: {token id: what is added to its logit}.
        allowed_token_ids: the only ones that may be chosen; None: all.
        bad_words: texts that the output never contains, where it spells them with the tokens that the tokenizer
            gives for them, at the start of a text or after a space. Also called ``bad``.
        bad: another name of bad_words, as TensorRT-LLM has it; give one of them.
        seed: the same seed gives the same tokens, whatever runs beside the request. None: a fresh one, which the
            output reports.
        n: outputs per prompt; output i draws with seed + i.
        min_tokens: output tokens before which nothing stops the request.
        stop: texts that end the request; the one that begins first in the text counts, and the text is cut before it.
        include_stop_str_in_output: cut after it instead.
        stop_token_ids: end the request besides the model's own end-of-sequence ids.
        end_id: the id that ends the request in place of the model's own.
        ignore_eos: go on after the model's own end-of-sequence ids, and after end_id.
        logprobs: give the log probability of each output token, and of the k most likely ones beside it; -1: of
            all. None: give none.
        detokenize: fill in ``text``.
        skip_special_tokens: leave special tokens out of ``text``.
        add_special_tokens: let the tokenizer add its own (such as beginning of sequence) to a text prompt.
        truncate_prompt_tokens: keep only the last k tokens of the prompt; -1: as many as leave room for one
            token of output; None: never cut.

    Raises:
        ValueError: a value outside its range; the message names field, rule and value.
        TypeError: a value of the wrong type.
    """

    max_tokens: int | None = 32
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = field(default=None, hash=False)
    allowed_token_ids: Sequence[int] | None = None
    bad_words: str | Sequence[str] | None = None
    bad: str | Sequence[str] | None = None
    seed: int | None = None
    n: int = 1
    min_tokens: int = 0
    stop: str | Sequence[str] | None = None
    include_stop_str_in_output: bool = False
    stop_token_ids: Sequence[int] | None = None
    end_id: int | None = None
    ignore_eos: bool = False
    logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    add_special_tokens: bool = True
    truncate_prompt_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in _BOOLS:
            to_bool(name, getattr(self, name))
        self._check_choice()
        self._check_stopping()
        self._check_integer("logprobs", -1, optional=True)
        self._check_integer("truncate_prompt_tokens", -1, optional=True)
        if self.truncate_prompt_tokens == 0:
            raise ValueError("truncate_prompt_tokens must be -1 or >= 1, got 0")

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW_TEMPERATURE

    def _check_choice(self) -> None:
        self._check_integer("top_k", -1)
        self._check_integer("seed", -(2**63), 2**64 - 1, optional=True)
        self._check_integer("n", 1)
        self._check_number("temperature", f"must be in [0, {MAX_FLOAT32:.2g}]", lambda x: 0 <= x <= MAX_FLOAT32)
        self._check_number("top_p", "must be in (0, 1]", lambda x: 0 < x <= 1)
        self._check_number("min_p", "must be in [0, 1]", lambda x: 0 <= x <= 1)
        self._check_number("repetition_penalty", f"must be in (0, {MAX_FLOAT32:.2g}]", lambda x: 0 < x <= MAX_FLOAT32)
        self._check_number("presence_penalty", "must be in [-2, 2]", lambda x: -2 <= x <= 2)
        self._check_number("frequency_penalty", "must be in [-2, 2]", lambda x: -2 <= x <= 2)
        if self.n > 1 and self.greedy:
            raise ValueError(f"n must be 1 when temperature is 0 (all outputs would be the same), got {self.n}")
        self._check_with("allowed_token_ids", to_token_ids)
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise ValueError("allowed_token_ids must hold at least one id, got none: nothing could be chosen")
        if self.bad is not None and self.bad_words is not None:
            raise ValueError("bad and bad_words are the same field: give one of them")
        self._check_with("bad", to_strings)
        self._check_with("bad_words", to_strings)
        self._check_with("logit_bias", _to_logit_bias)

    def _check_stopping(self) -> None:
        self._check_integer("max_tokens", 1, optional=True)
        self._check_integer("min_tokens", 0)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens must be at most max_tokens ({self.max_tokens}), got {self.min_tokens}")
        self._check_with("stop", to_strings)
        if self.stop and not self.detokenize:
            raise ValueError(f"stop must be None when detokenize is False (there is no text), got {self.stop!r}")
        self._check_with("stop_token_ids", to_token_ids)
        self._check_integer("end_id", 0, optional=True)

    def _check_integer(self, name: str, minimum: int, maximum: int = 2**31 - 1, *, optional: bool = False) -> None:
        value = getattr(self, name)
        if value is None and optional:
            return
        kind = "an integer or None" if optional else "an integer"
        object.__setattr__(self, name, to_integer(name, value, minimum, maximum, kind=kind))

    def _check_number(self, name: str, rule: str, holds: Callable[[float], bool]) -> None:
        object.__setattr__(self, name, to_number(name, getattr(self, name), rule, holds))

    def _check_with(self, name: str, check: Callable[[str, object], object]) -> None:
        value = getattr(self, name)
        if value is not None:
            object.__setattr__(self, name, check(name, value))


def _to_logit_bias(name: str, value: object) -> dict[int, float]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a mapping of token ids to numbers or None, got {value!r}")
    rule = f"must be in [-inf, {MAX_FLOAT32:.2g}]"
    return {
        to_integer(name, token_id, 0): to_number(
            f"{name}[{token_id}]", bias, rule, lambda x: (abs(x) <= MAX_FLOAT32) or x == -math.inf
        )
        for token_id, bias in value.items()
    }
