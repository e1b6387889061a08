"""What goes into an engine and what comes out of it: plain values."""

from __future__ import annotations

import dataclasses
import enum
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, SupportsIndex


class FinishReason(enum.Enum):
    """Why a request ended; the values are the names that the LLM APIs of this field use."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"
    TIMEOUT = "timeout"


class CapacityPolicy(enum.IntEnum):
    """``PRECAST_CAPACITY_*``: who gets KV blocks when there are not enough for everybody."""

    GUARANTEED_NO_EVICT = 0
    MAX_UTILIZATION = 1
    STATIC_BATCH = 2


class LogLevel(enum.IntEnum):
    """``PRECAST_LOG_*``."""

    INFO = 1
    WARNING = 2
    ERROR = 3


# Options that are unsigned integers in C, their bits, and the least that means something.
_INTEGER_OPTIONS = {
    "num_threads": (32, 1),
    "max_batch_size": (32, 1),
    "max_num_tokens": (32, 1),
    "max_seq_len": (32, 1),
    "kv_cache_bytes": (64, 1),
    "max_queue_size": (64, 1),
    "iteration_stats_size": (32, 0),
    "kv_events_size": (32, 0),
    "rank_timeout_s": (32, 1),
}


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
    worker_path: str | None = None
    python_path: str | None = None
    """Runs the ranks of an engine for GPUs; None: this Python."""
    rank_timeout_s: int | None = None
    """After which a rank that makes no progress counts as hung; None: 60."""
    capacity_policy: CapacityPolicy = CapacityPolicy.GUARANTEED_NO_EVICT
    enable_block_reuse: bool = True
    max_queue_size: int | None = None
    """Requests that may wait for their first step; None: no limit."""
    iteration_stats_size: int | None = None
    kv_events_size: int | None = None
    log: Callable[[int, str], None] | None = None
    """Called with a LogLevel (or a number of a newer library) and one line, from any thread. It must not raise."""

    def __post_init__(self) -> None:
        for name, (bits, least) in _INTEGER_OPTIONS.items():
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, SupportsIndex):
                raise TypeError(f"{name} must be an integer or None, got {value!r}")
            if not least <= operator.index(value) < 2**bits:
                raise ValueError(f"{name} must be between {least} and 2**{bits} - 1, or None, got {value}")
            object.__setattr__(self, name, operator.index(value))  # ctypes takes no integers of NumPy


class Retention(NamedTuple):
    """How long the KV blocks of a range of tokens are worth keeping; see ``precast_retention_t``."""

    start_token: int
    end_token: int
    """Exclusive; 0: without end."""
    priority: int
    """0 to 100."""
    duration_ns: int = 0
    """0: for ever."""


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
    min_tokens: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    num_logprobs: int = -1
    """-1: none; 0: of the token itself; k: also of the k most likely."""
    bad_words: Sequence[Sequence[int]] = ()
    allowed_token_ids: Sequence[int] = ()
    """None given: all."""
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
    priority: float = 0.5
    deadline_ns: int = 0
    """``time.monotonic_ns()``; 0: never."""
    cache_salt: bytes = b""
    skip_block_reuse: bool = False
    retention: Sequence[Retention] = ()

    def __post_init__(self) -> None:
        # In C these are unsigned: -1 would become a large number instead of an error.
        if self.max_tokens is not None and not 1 <= self.max_tokens < 2**31:
            raise ValueError(f"max_tokens must be between 1 and 2**31 - 1, or None, got {self.max_tokens}")
        for name in ("top_k", "min_tokens"):
            if not 0 <= getattr(self, name) < 2**31:
                raise ValueError(f"{name} must be between 0 and 2**31 - 1, got {getattr(self, name)}")
        if not -1 <= self.num_logprobs < 2**31:
            raise ValueError(f"num_logprobs must be between -1 and 2**31 - 1, got {self.num_logprobs}")
        if not 0 <= self.deadline_ns < 2**63:
            raise ValueError(f"deadline_ns must be between 0 and 2**63 - 1, got {self.deadline_ns}")
        for start, end, priority, duration_ns in self.retention:
            limits = ((start, 32), (end, 32), (priority, 32), (duration_ns, 64))
            if not all(0 <= value < 2**bits for value, bits in limits):
                raise ValueError(f"retention has {(start, end, priority, duration_ns)}, of which one does not fit")
        if not math.isfinite(self.priority):
            raise ValueError(f"priority must be finite, got {self.priority}")


class TokenLogprob(NamedTuple):
    """Of one token at one place of an output."""

    token_id: int
    logprob: float
    """Natural logarithm of its probability by the raw logits."""
    rank: int
    """1: the most likely."""


@dataclasses.dataclass(frozen=True)
class TokenEvent:
    """The next output token of a request."""

    token_id: int
    time_ns: int
    """``time.monotonic_ns()`` when it was sampled."""
    logprobs: Sequence[TokenLogprob] = ()
    """Where asked for: first the token, then the most likely ones in the order of their rank."""


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
    num_cached_tokens: int = 0
    """Prompt tokens that were not computed for this request."""
    num_preemptions: int = 0
    first_scheduled_ns: int | None = None
    """``time.monotonic_ns()`` when it left the queue; None: never."""


Event = TokenEvent | FinishedEvent
