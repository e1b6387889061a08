"""What a request may be told besides its prompt and its sampling parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from precast.configs import KvCacheRetentionConfig
from precast.field_checks import to_number


@dataclass(frozen=True)
class RequestSettings:
    """Checked at birth.

    Attributes:
        priority: in [0, 1]; higher ones start first, and are preempted last.
        cache_salt: requests share cached prompt blocks only with those of the same salt.
        kv_cache_retention_config: how long its blocks are worth keeping.
        timeout_s: seconds after which an unfinished request ends with finish_reason "timeout".
    """

    priority: float = 0.5
    cache_salt: str | None = None
    kv_cache_retention_config: KvCacheRetentionConfig | None = None
    timeout_s: float | None = None

    def __post_init__(self) -> None:
        to_number("priority", self.priority, "must be in [0, 1]", lambda x: 0 <= x <= 1)
        if self.cache_salt is not None and not isinstance(self.cache_salt, str):
            raise TypeError(f"cache_salt must be a str or None, got {self.cache_salt!r}")
        if self.cache_salt == "":
            raise ValueError("cache_salt must not be empty; leave it out for none")
        retention = self.kv_cache_retention_config
        if retention is not None and not isinstance(retention, KvCacheRetentionConfig):
            raise TypeError(f"kv_cache_retention_config must be a KvCacheRetentionConfig or None, got {retention!r}")
        if self.timeout_s is not None:
            to_number("timeout_s", self.timeout_s, "must be above 0 and finite", lambda x: 0 < x < math.inf)


def one_each(name: str, given: Any, count: int) -> list[Any]:
    """``given`` for each of ``count`` prompts, or its entries where it is a sequence of them.

    Raises:
        ValueError: their numbers differ.
    """
    if isinstance(given, str) or not isinstance(given, Iterable):
        return [given] * count
    each = list(given)
    if len(each) != count:
        raise ValueError(f"{len(each)} {name} for {count} prompts: give one for all, or one each")
    return each


def make_settings(
    count: int,
    priority: float | Sequence[float],
    cache_salt: str | Sequence[str | None] | None,
    kv_cache_retention_config: KvCacheRetentionConfig | Sequence[KvCacheRetentionConfig | None] | None,
    timeout_s: float | Sequence[float | None] | None,
) -> list[RequestSettings]:
    """Settings of ``count`` requests, each field one for all or one each."""
    return [
        RequestSettings(*fields)
        for fields in zip(
            one_each("priority", priority, count),
            one_each("cache_salt", cache_salt, count),
            one_each("kv_cache_retention_config", kv_cache_retention_config, count),
            one_each("timeout_s", timeout_s, count),
            strict=True,
        )
    ]
