"""Configurations with TensorRT-LLM's names: of the KV cache, the scheduler, and what is kept in the cache."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar

from precast.field_checks import to_bool, to_integer
from precast.runtime import CapacityPolicy, Retention

DEFAULT_RETENTION_PRIORITY = 35


@dataclass(frozen=True, kw_only=True)
class KvCacheConfig:
    """The cache of keys and values.

    Attributes:
        enable_block_reuse: requests share the blocks of equal beginnings, also with later ones.
        event_buffer_max_size: events about cached blocks that are kept for ``get_kv_cache_events``; 0: none.
        dtype: of a build: "auto", "float32" or "bfloat16".
        tokens_per_block: of a build; None: the builder's default.
    """

    enable_block_reuse: bool = True
    event_buffer_max_size: int = 0
    dtype: str = "auto"
    tokens_per_block: int | None = None

    def __post_init__(self) -> None:
        to_bool("enable_block_reuse", self.enable_block_reuse)
        to_integer("event_buffer_max_size", self.event_buffer_max_size, 0)


class CapacitySchedulerPolicy(str, enum.Enum):
    """Who gets KV blocks when there are not enough for everybody."""

    GUARANTEED_NO_EVICT = "GUARANTEED_NO_EVICT"
    """A request starts when there is room for all that it may need; it never waits again."""
    MAX_UTILIZATION = "MAX_UTILIZATION"
    """A request starts when its prompt has room; when blocks run out, the least important one is computed again
    later. Its tokens are the same."""
    STATIC_BATCH = "STATIC_BATCH"
    """Requests start together, and the next ones when all of them have ended."""


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """Which requests run.

    Attributes:
        capacity_scheduler_policy: one of CapacitySchedulerPolicy, or its name.
    """

    capacity_scheduler_policy: CapacitySchedulerPolicy | str = CapacitySchedulerPolicy.GUARANTEED_NO_EVICT

    def __post_init__(self) -> None:
        names = [policy.value for policy in CapacitySchedulerPolicy]
        if self.capacity_scheduler_policy not in names:
            raise ValueError(
                f"capacity_scheduler_policy must be one of {', '.join(names)}, got {self.capacity_scheduler_policy!r}"
            )
        object.__setattr__(self, "capacity_scheduler_policy", CapacitySchedulerPolicy(self.capacity_scheduler_policy))

    @property
    def native_policy(self) -> CapacityPolicy:
        return CapacityPolicy[CapacitySchedulerPolicy(self.capacity_scheduler_policy).value]


@dataclass(frozen=True)
class TokenRangeRetentionConfig:
    """How long the cached blocks of some tokens of the prompt are worth keeping.

    Attributes:
        token_start: first position.
        token_end: position after the last; None: to the end of the prompt.
        priority: 0 to 100; blocks of lower priority are given up first. The default elsewhere is 35.
        duration_ms: how long the priority holds after the last use; None: for ever.
    """

    token_start: int
    token_end: int | None
    priority: int
    duration_ms: timedelta | None = None

    def __post_init__(self) -> None:
        to_integer("token_start", self.token_start, 0)
        if self.token_end is not None:
            to_integer("token_end", self.token_end, 1, kind="an integer or None")
            if self.token_end <= self.token_start:
                raise ValueError(f"token_end must be above token_start ({self.token_start}), got {self.token_end}")
        _check_priority("priority", self.priority)
        _check_duration("duration_ms", self.duration_ms)


_TokenRange = TokenRangeRetentionConfig


@dataclass(frozen=True)
class KvCacheRetentionConfig:
    """How long the cached blocks of a request are worth keeping for others.

    Attributes:
        token_range_retention_configs: parts of the prompt; where they overlap, the later one counts.
        decode_retention_priority: of the output, 0 to 100.
        decode_duration_ms: how long that holds after the last use; None: for ever.
    """

    TokenRangeRetentionConfig: ClassVar = TokenRangeRetentionConfig  # TensorRT-LLM's place for it

    token_range_retention_configs: Sequence[_TokenRange] = ()
    decode_retention_priority: int = DEFAULT_RETENTION_PRIORITY
    decode_duration_ms: timedelta | None = None

    def __post_init__(self) -> None:
        for part in self.token_range_retention_configs:
            if not isinstance(part, _TokenRange):
                raise TypeError(
                    f"token_range_retention_configs must hold TokenRangeRetentionConfig, got {type(part).__name__}"
                )
        _check_priority("decode_retention_priority", self.decode_retention_priority)
        _check_duration("decode_duration_ms", self.decode_duration_ms)

    def to_native(self, num_prompt_tokens: int) -> list[Retention]:
        """For a prompt of that many tokens. What lies behind the prompt is the output's."""
        parts = [
            Retention(part.token_start, part.token_end or 0, part.priority, _nanoseconds(part.duration_ms))
            for part in self.token_range_retention_configs
        ]
        decode_ns = _nanoseconds(self.decode_duration_ms)
        return [*parts, Retention(num_prompt_tokens, 0, self.decode_retention_priority, decode_ns)]


def _check_priority(name: str, value: object) -> None:
    to_integer(name, value, 0, 100)


def _check_duration(name: str, value: object) -> None:
    if value is None:
        return
    if not isinstance(value, timedelta):
        raise TypeError(f"{name} must be a datetime.timedelta or None, got {value!r}")
    if value <= timedelta(0):
        raise ValueError(f"{name} must be above 0, got {value!r}")


def _nanoseconds(duration: timedelta | None) -> int:
    return 0 if duration is None else (duration // timedelta(microseconds=1)) * 1000
