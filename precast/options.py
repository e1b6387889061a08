"""The options of ``LLM``: which exist, which half they belong to, and what to say about the others."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from precast.build_cache import BuildCacheConfig, to_cache_config
from precast.configs import KvCacheConfig, SchedulerConfig
from precast.field_checks import to_integer

# What LLM's **options may hold, and the names the two halves know them by.
RUNTIME_OPTIONS = {
    "num_threads": "num_threads",
    "max_batch_size": "max_batch_size",
    "max_num_seqs": "max_batch_size",
    "max_num_tokens": "max_num_tokens",
    "max_num_batched_tokens": "max_num_tokens",
    "kv_cache_bytes": "kv_cache_bytes",
    "kv_cache_memory_bytes": "kv_cache_bytes",
    "max_queue_size": "max_queue_size",
    "iter_stats_max_iterations": "iteration_stats_size",
    "rank_timeout_s": "rank_timeout_s",
}
BUILD_OPTIONS = {"kv_cache_dtype": "kv_cache_dtype", "tokens_per_block": "tokens_per_block"}
SEQUENCE_LENGTH_OPTIONS = ("max_seq_len", "max_model_len")
CONFIG_OPTIONS = ("kv_cache_config", "scheduler_config")
OTHER_OPTIONS = ("verify", "workspace", "enable_build_cache", "pipeline_parallel_size", "device")
# LLM's named arguments, which somebody may have meant with a name that is nearly one of them.
ARGUMENTS = (
    "model",
    "tokenizer",
    "tokenizer_mode",
    "skip_tokenizer_init",
    "trust_remote_code",
    "tensor_parallel_size",
    "dtype",
    "revision",
    "tokenizer_revision",
    "backend",
)

DEFAULT_ITERATION_STATS = 1000


@dataclass(frozen=True)
class Options:
    """LLM's options, sorted."""

    build: dict[str, Any] = field(default_factory=dict)
    runtime: dict[str, Any] = field(default_factory=dict)
    max_seq_len: int | None = None
    verify: bool = False
    workspace: str | os.PathLike[str] | None = None
    build_cache: BuildCacheConfig | None = None
    pipeline_parallel_size: int = 1
    device: str | None = None


def sort_options(options: Mapping[str, Any]) -> Options:
    """Each option to its half, under the name that it has there.

    Raises:
        ValueError: an unknown name, with the nearest known one; one value given under two names; or an
            ``enable_build_cache`` that says nothing sensible.
        TypeError: a configuration of another class.
    """
    known = (*RUNTIME_OPTIONS, *BUILD_OPTIONS, *SEQUENCE_LENGTH_OPTIONS, *CONFIG_OPTIONS, *OTHER_OPTIONS)
    for name in options:
        if name not in known:
            raise ValueError(f"unknown option {name}; {_hint(name, known)}")
    lengths = _rename(options, dict.fromkeys(SEQUENCE_LENGTH_OPTIONS, "max_seq_len"))
    cache_build, cache_runtime = _kv_cache_options(options)
    runtime = {"iteration_stats_size": DEFAULT_ITERATION_STATS, **_rename(options, RUNTIME_OPTIONS)}
    return Options(
        build=_rename({**options, **cache_build}, BUILD_OPTIONS),
        runtime={**runtime, **cache_runtime, **_scheduler_options(options)},
        max_seq_len=lengths.get("max_seq_len"),
        verify=bool(options.get("verify", False)),
        workspace=options.get("workspace"),
        build_cache=to_cache_config(options.get("enable_build_cache")),
        pipeline_parallel_size=to_integer("pipeline_parallel_size", options.get("pipeline_parallel_size", 1), 1),
        device=options.get("device"),
    )


def _kv_cache_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of kv_cache_config: what LLM's build options would be, and what the runtime is told."""
    config = options.get("kv_cache_config")
    if config is None:
        return {}, {}
    if not isinstance(config, KvCacheConfig):
        raise TypeError(f"kv_cache_config must be a KvCacheConfig or None, got {config!r}")
    build = {}
    for ours, value, neutral in (
        ("kv_cache_dtype", config.dtype, "auto"),
        ("tokens_per_block", config.tokens_per_block, None),
    ):
        if value != neutral:
            if options.get(ours) is not None:
                raise ValueError(f"{ours} and kv_cache_config say the same: give one of them")
            build[ours] = value
    runtime: dict[str, Any] = {"enable_block_reuse": config.enable_block_reuse}
    if config.event_buffer_max_size:
        runtime["kv_events_size"] = config.event_buffer_max_size
    return build, runtime


def _scheduler_options(options: Mapping[str, Any]) -> dict[str, Any]:
    config = options.get("scheduler_config")
    if config is None:
        return {}
    if not isinstance(config, SchedulerConfig):
        raise TypeError(f"scheduler_config must be a SchedulerConfig or None, got {config!r}")
    return {"capacity_policy": config.native_policy}


def _hint(name: str, known: Sequence[str]) -> str:
    import difflib

    nearest = difflib.get_close_matches(name, (*known, *ARGUMENTS), n=1)
    return f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(sorted(known))}"


def _rename(options: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    renamed: dict[str, Any] = {}
    given_as: dict[str, str] = {}
    for name, value in options.items():
        if name not in names or value is None:
            continue
        target = names[name]
        if target in renamed:
            raise ValueError(f"{given_as[target]} and {name} are the same option: give one of them")
        renamed[target], given_as[target] = value, name
    return renamed
