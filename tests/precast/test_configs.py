"""Configurations refuse what cannot work, and become what the engine understands."""

from datetime import timedelta
from typing import Any

import pytest

from precast import (
    CapacitySchedulerPolicy,
    KvCacheConfig,
    KvCacheRetentionConfig,
    SchedulerConfig,
    TokenRangeRetentionConfig,
)
from precast.runtime import CapacityPolicy, Retention


@pytest.mark.parametrize("policy", CapacitySchedulerPolicy)
def test_a_policy_or_its_name(policy: CapacitySchedulerPolicy) -> None:
    config = SchedulerConfig(capacity_scheduler_policy=policy)
    assert config == SchedulerConfig(capacity_scheduler_policy=policy.value)
    assert config.capacity_scheduler_policy is policy
    assert config.native_policy is CapacityPolicy[policy.value]


def test_every_policy_of_the_engine_has_a_name() -> None:
    assert {policy.value for policy in CapacitySchedulerPolicy} == {policy.name for policy in CapacityPolicy}


def test_without_token_ranges_only_the_output_is_meant() -> None:
    config = KvCacheRetentionConfig(decode_retention_priority=5, decode_duration_ms=timedelta(seconds=2))
    assert config.to_native(7) == [Retention(7, 0, 5, 2_000_000_000)]


def test_the_order_of_ranges_stays() -> None:
    parts = [TokenRangeRetentionConfig(4, 9, 100), TokenRangeRetentionConfig(0, None, 0)]
    assert KvCacheRetentionConfig(parts).to_native(20) == [
        Retention(4, 9, 100),
        Retention(0, 0, 0),
        Retention(20, 0, 35),
    ]


@pytest.mark.parametrize(
    ("class_", "arguments", "error", "message"),
    [
        (KvCacheConfig, {"enable_block_reuse": 1}, TypeError, "enable_block_reuse must be a bool, got 1"),
        (
            KvCacheConfig,
            {"event_buffer_max_size": -1},
            ValueError,
            "event_buffer_max_size must be in [0, 2147483647], got -1",
        ),
        (KvCacheConfig, {"max_tokens": 5}, TypeError, "unexpected keyword argument 'max_tokens'"),
        (
            SchedulerConfig,
            {"capacity_scheduler_policy": "FIRST"},
            ValueError,
            (
                "capacity_scheduler_policy must be one of GUARANTEED_NO_EVICT, MAX_UTILIZATION, STATIC_BATCH, "
                "got 'FIRST'"
            ),
        ),
        (
            TokenRangeRetentionConfig,
            {"token_start": -1, "token_end": 2, "priority": 5},
            ValueError,
            "token_start must be in [0, 2147483647], got -1",
        ),
        (
            TokenRangeRetentionConfig,
            {"token_start": 2, "token_end": 2, "priority": 5},
            ValueError,
            "token_end must be above token_start (2), got 2",
        ),
        (
            TokenRangeRetentionConfig,
            {"token_start": 0, "token_end": 2, "priority": 101},
            ValueError,
            "priority must be in [0, 100], got 101",
        ),
        (
            TokenRangeRetentionConfig,
            {"token_start": 0, "token_end": 2, "priority": 5, "duration_ms": 30},
            TypeError,
            "duration_ms must be a datetime.timedelta or None, got 30",
        ),
        (
            KvCacheRetentionConfig,
            {"decode_duration_ms": timedelta(0)},
            ValueError,
            "decode_duration_ms must be above 0, got datetime.timedelta(0)",
        ),
        (
            KvCacheRetentionConfig,
            {"token_range_retention_configs": [(0, 5, 10)]},
            TypeError,
            "token_range_retention_configs must hold TokenRangeRetentionConfig, got tuple",
        ),
    ],
)
def test_what_cannot_work(class_: Any, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        class_(**arguments)
    assert str(caught.value).endswith(message)
