"""How tokens are chosen, and when a request ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

GREEDY_BELOW_TEMPERATURE = 1e-5


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Sampling and stopping of one request. The defaults are those of TensorRT-LLM's and vLLM's classes.

    Attributes:
        max_tokens: output tokens; None: as many as fit in max_seq_len.
        temperature: divides the logits; below 1e-5 the largest logit is taken ("greedy").
        top_k: keep the k most likely tokens; 0 and -1 keep all.
        top_p: then keep the fewest tokens that hold at least this much of the probability.
        seed: the same seed gives the same tokens, whatever runs beside the request. None: a fresh one, which the
            output reports.
        n: outputs per prompt; output i draws with seed + i.
        stop_token_ids: end the request besides the model's own end-of-sequence ids.
        ignore_eos: go on after the model's own end-of-sequence ids.
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
    seed: int | None = None
    n: int = 1
    stop_token_ids: Sequence[int] | None = None
    ignore_eos: bool = False
    detokenize: bool = True
    skip_special_tokens: bool = True
    add_special_tokens: bool = True
    truncate_prompt_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("ignore_eos", "detokenize", "skip_special_tokens", "add_special_tokens"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be a bool, got {getattr(self, name)!r}")
        _check_integer("max_tokens", self.max_tokens, 1, 2**31 - 1, optional=True)
        _check_integer("top_k", self.top_k, -1, 2**31 - 1)
        _check_integer("seed", self.seed, -(2**63), 2**64 - 1, optional=True)
        _check_integer("n", self.n, 1, 2**31 - 1)
        _check_integer("truncate_prompt_tokens", self.truncate_prompt_tokens, -1, 2**31 - 1, optional=True)
        if self.truncate_prompt_tokens == 0:
            raise ValueError("truncate_prompt_tokens must be -1 or >= 1, got 0")
        for stop in self.stop_token_ids or ():
            _check_integer("stop_token_ids", stop, 0, 2**31 - 1)
        temperature = _check_number("temperature", self.temperature)
        if not (math.isfinite(temperature) and temperature >= 0):
            raise ValueError(f"temperature must be finite and >= 0, got {self.temperature}")
        if not 0 < _check_number("top_p", self.top_p) <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.n > 1 and self.greedy:
            raise ValueError(f"n must be 1 when temperature is 0 (all outputs would be the same), got {self.n}")

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW_TEMPERATURE


def _check_integer(name: str, value: object, minimum: int, maximum: int, *, optional: bool = False) -> None:
    if value is None and optional:
        return
    # NumPy's integers come out of tokenizers and arrays; bool is an int that nobody means.
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer{' or None' if optional else ''}, got {value!r}")
    if not minimum <= value.__index__() <= maximum:
        raise ValueError(f"{name} must be in [{minimum}, {maximum}], got {value}")


def _check_number(name: str, value: object) -> float:
    if isinstance(value, bool) or (not isinstance(value, (int, float)) and not hasattr(value, "__float__")):
        raise TypeError(f"{name} must be a number, got {value!r}")
    return float(value)
