"""How tokens are chosen, and when a request ends."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import SupportsIndex

GREEDY_BELOW_TEMPERATURE = 1e-5
_MAX_FLOAT32 = 3.4e38  # the engine computes in float32, where more would be infinite


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
        self._check_integer("max_tokens", 1, 2**31 - 1, optional=True)
        self._check_integer("top_k", -1, 2**31 - 1)
        self._check_integer("seed", -(2**63), 2**64 - 1, optional=True)
        self._check_integer("n", 1, 2**31 - 1)
        self._check_integer("truncate_prompt_tokens", -1, 2**31 - 1, optional=True)
        if self.truncate_prompt_tokens == 0:
            raise ValueError("truncate_prompt_tokens must be -1 or >= 1, got 0")
        self._check_stop_token_ids()
        self._check_number("temperature", f"must be in [0, {_MAX_FLOAT32:.2g}]", lambda x: 0 <= x <= _MAX_FLOAT32)
        self._check_number("top_p", "must be in (0, 1]", lambda x: 0 < x <= 1)
        if self.n > 1 and self.greedy:
            raise ValueError(f"n must be 1 when temperature is 0 (all outputs would be the same), got {self.n}")

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW_TEMPERATURE

    def _check_integer(self, name: str, minimum: int, maximum: int, *, optional: bool = False) -> None:
        value = getattr(self, name)
        if value is None and optional:
            return
        kind = "an integer or None" if optional else "an integer"
        object.__setattr__(self, name, _to_integer(name, kind, value, minimum, maximum))

    def _check_stop_token_ids(self) -> None:
        ids = self.stop_token_ids
        if ids is None:
            return
        kind = "a sequence of integers or None"
        if isinstance(ids, (str, bytes)) or not hasattr(ids, "__iter__"):
            raise TypeError(f"stop_token_ids must be {kind}, got {ids!r}")
        checked = tuple(_to_integer("stop_token_ids", kind, token_id, 0, 2**31 - 1) for token_id in ids)
        object.__setattr__(self, "stop_token_ids", checked)

    def _check_number(self, name: str, rule: str, holds: Callable[[float], bool]) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not hasattr(value, "__float__"):
            raise TypeError(f"{name} must be a number, got {value!r}")
        if not holds(float(value)):
            raise ValueError(f"{name} {rule}, got {value}")
        object.__setattr__(self, name, float(value))


def _to_integer(name: str, kind: str, value: object, minimum: int, maximum: int) -> int:
    # NumPy's integers come out of tokenizers and arrays, and ctypes takes none; bool is an int that nobody means.
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise TypeError(f"{name} must be {kind}, got {value!r}")
    if not minimum <= operator.index(value) <= maximum:
        raise ValueError(f"{name} must be in [{minimum}, {maximum}], got {value}")
    return operator.index(value)
