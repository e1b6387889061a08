"""What goes into an engine and what comes out of it: plain values."""

from __future__ import annotations

import dataclasses
import enum
import operator
from collections.abc import Sequence
from typing import SupportsIndex


class FinishReason(enum.Enum):
    """Why a request ended; the values are the names that the LLM APIs of this field use."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


@dataclasses.dataclass(frozen=True)
class EngineOptions:
    """How to load an engine; see ``precast_engine_options_t``. None leaves the choice to the library."""

    num_threads: int | None = None
    max_batch_size: int | None = None
    max_num_tokens: int | None = None
    max_seq_len: int | None = None
    kv_cache_bytes: int | None = None
    kernel_level: str | None = None
    onnxruntime_path: str | None = None

    def __post_init__(self) -> None:
        limits = {"num_threads": 32, "max_batch_size": 32, "max_num_tokens": 32, "max_seq_len": 32}
        for name, bits in {**limits, "kv_cache_bytes": 64}.items():
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, SupportsIndex):
                raise TypeError(f"{name} must be an integer or None, got {value!r}")
            if not 1 <= operator.index(value) < 2**bits:
                raise ValueError(f"{name} must be between 1 and 2**{bits} - 1, or None, got {value}")
            object.__setattr__(self, name, operator.index(value))  # ctypes takes no integers of NumPy


@dataclasses.dataclass(frozen=True)
class EngineRequest:
    """One sequence to continue; ``precast_request_t`` and ``precast_sampling_t`` in one."""

    prompt_token_ids: Sequence[int]
    max_tokens: int | None = 32
    """Output tokens; None: as many as fit."""
    temperature: float = 1.0
    top_k: int = 0
    """0: all."""
    top_p: float = 1.0
    seed: int = 0
    """Only the lowest 64 bits count."""
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        # In C these are unsigned: -1 would become a large number instead of an error.
        if self.max_tokens is not None and not 1 <= self.max_tokens < 2**31:
            raise ValueError(f"max_tokens must be between 1 and 2**31 - 1, or None, got {self.max_tokens}")
        if not 0 <= self.top_k < 2**31:
            raise ValueError(f"top_k must be between 0 and 2**31 - 1, got {self.top_k}")


@dataclasses.dataclass(frozen=True)
class TokenEvent:
    """The next output token of a request."""

    token_id: int
    time_ns: int
    """``time.monotonic_ns()`` when it was sampled."""


@dataclasses.dataclass(frozen=True)
class FinishedEvent:
    """The last event of a request."""

    reason: FinishReason
    stop_token_id: int | None
    num_prompt_tokens: int
    num_output_tokens: int
    time_ns: int
    error: Exception | None
    """Set exactly when ``reason`` is ERROR."""


Event = TokenEvent | FinishedEvent
