"""LLM's options, sorted into those of building and those of running."""

import inspect
from typing import Any

import pytest

from precast import LLM, BuildCacheConfig, KvCacheConfig, SchedulerConfig
from precast.backend_choice import check_backend
from precast.options import ARGUMENTS, Options, sort_options
from precast.runtime import CapacityPolicy, EngineOptions


def test_each_goes_to_its_half() -> None:
    given = {
        "kv_cache_dtype": "float32",
        "tokens_per_block": 32,
        "num_threads": 2,
        "max_batch_size": 8,
        "max_num_tokens": 64,
        "kv_cache_bytes": 1 << 20,
        "max_queue_size": 100,
        "iter_stats_max_iterations": 0,
        "max_seq_len": 128,
        "verify": True,
        "workspace": "here",
        "enable_build_cache": {"cache_root": "there"},
    }
    assert sort_options(given) == Options(
        build={"kv_cache_dtype": "float32", "tokens_per_block": 32},
        runtime={
            "num_threads": 2,
            "max_batch_size": 8,
            "max_num_tokens": 64,
            "kv_cache_bytes": 1 << 20,
            "max_queue_size": 100,
            "iteration_stats_size": 0,
        },
        max_seq_len=128,
        verify=True,
        workspace="here",
        build_cache=BuildCacheConfig("there"),
    )


def test_vllms_names_are_understood() -> None:
    theirs = {"max_num_seqs": 8, "max_num_batched_tokens": 64, "kv_cache_memory_bytes": 1 << 20, "max_model_len": 128}
    ours = {"max_batch_size": 8, "max_num_tokens": 64, "kv_cache_bytes": 1 << 20, "max_seq_len": 128}
    assert sort_options(theirs) == sort_options(ours)


def test_none_is_as_good_as_nothing() -> None:
    assert sort_options({"num_threads": None, "max_seq_len": None, "max_model_len": 64}) == Options(
        runtime={"iteration_stats_size": 1000}, max_seq_len=64
    )


def test_configurations_go_to_their_halves() -> None:
    cache = KvCacheConfig(enable_block_reuse=False, event_buffer_max_size=9, dtype="float32", tokens_per_block=32)
    scheduler = SchedulerConfig(capacity_scheduler_policy="MAX_UTILIZATION")
    assert sort_options({"kv_cache_config": cache, "scheduler_config": scheduler}) == Options(
        build={"kv_cache_dtype": "float32", "tokens_per_block": 32},
        runtime={
            "iteration_stats_size": 1000,
            "enable_block_reuse": False,
            "kv_events_size": 9,
            "capacity_policy": CapacityPolicy.MAX_UTILIZATION,
        },
    )


def test_default_configurations_change_nothing_for_an_engine() -> None:
    options = sort_options({"kv_cache_config": KvCacheConfig(), "scheduler_config": SchedulerConfig()})
    assert options.build == {}
    assert EngineOptions(**options.runtime) == EngineOptions(iteration_stats_size=1000)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kv_cache_config": {}}, TypeError, "kv_cache_config must be a KvCacheConfig or None, got {}"),
        ({"scheduler_config": 5}, TypeError, "scheduler_config must be a SchedulerConfig or None, got 5"),
        (
            {"kv_cache_config": KvCacheConfig(dtype="float32"), "kv_cache_dtype": "float32"},
            ValueError,
            "kv_cache_dtype and kv_cache_config say the same: give one of them",
        ),
        (
            {"kv_cache_config": KvCacheConfig(tokens_per_block=16), "tokens_per_block": 16},
            ValueError,
            "tokens_per_block and kv_cache_config say the same: give one of them",
        ),
    ],
)
def test_configurations_that_cannot_work(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        sort_options(options)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("max_seq_length", "did you mean max_seq_len?"),
        ("num_thread", "did you mean num_threads?"),
        ("max_num_seq", "did you mean max_num_seqs?"),
        ("kv_cache_type", "did you mean kv_cache_dtype?"),
        ("tensor_paralel_size", "did you mean tensor_parallel_size?"),
        ("xyz", "known are device, enable_build_cache, iter_stats_max_iterations, kv_cache_bytes, "),
    ],
)
def test_an_unknown_option_is_an_error_with_the_nearest_name(name: str, hint: str) -> None:
    with pytest.raises(ValueError, match=f"^unknown option {name}; ") as caught:
        sort_options({name: 1})
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch_size": 8, "max_num_seqs": 8}, "max_batch_size and max_num_seqs are the same option: "),
        ({"max_model_len": 9, "max_seq_len": 8}, "max_model_len and max_seq_len are the same option: "),
    ],
)
def test_one_option_under_two_names(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message + "give one of them"):
        sort_options(options)


def test_the_list_of_arguments_is_that_of_the_constructor() -> None:
    named = [name for name, p in inspect.signature(LLM).parameters.items() if p.kind is not p.VAR_KEYWORD]
    assert list(ARGUMENTS) == named


@pytest.mark.parametrize("backend", [None, "onnxruntime", "tensorrt"])
def test_known_backends(backend: str | None) -> None:
    check_backend(backend)


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("pytorch", "backend='pytorch' runs models through PyTorch, which Precast never needs: leave backend out, "),
        ("_autodeploy", "backend='_autodeploy' runs models through PyTorch"),
        ("triton", "unknown backend 'triton': Precast has 'onnxruntime' or 'tensorrt'"),
    ],
)
def test_other_backends_are_answered_with_what_there_is(backend: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        check_backend(backend)
    assert str(caught.value).startswith(message)
    assert "'onnxruntime'" in str(caught.value)
