"""What a build for ONNX Runtime on GPUs decides, and what it refuses before it starts."""

import logging
from dataclasses import replace
from importlib import metadata
from typing import Any

import pytest

from precast.builder.backends import BACKENDS, get_backend
from precast.builder.backends.onnxruntime_cuda.backend import BACKEND
from precast.builder.backends.onnxruntime_cuda.planning import (
    MIN_CAPABILITY,
    ONNXRUNTIME_MIN,
    TARGETS,
    check_targets,
    kernel_targets,
)
from precast.builder.build_config import BuildConfig
from precast.builder.cache.key import cache_key, describe_build
from precast.builder.errors import BuildError
from precast.builder.plan import BuildPlan, DevicePlan, plan_build, plan_ranks
from precast.checkpoints.errors import PartitionError
from precast.checkpoints.model_config import ModelConfig
from precast.checkpoints.ranks.mapping import Mapping
from precast.plugins.device.compiled_kernel import CUBIN_TARGETS
from tests.builder.tensorrt.worlds import WIDE
from tests.builder.worlds import with_attention

NAME = "onnxruntime-cuda"


def planned(model: ModelConfig = WIDE, **options: Any) -> BuildPlan:
    return plan_build(model, BuildConfig(**options), NAME)


def device_of(model: ModelConfig = WIDE, **options: Any) -> DevicePlan:
    device = planned(model, **options).device
    assert device is not None
    return device


def refused(model: ModelConfig = WIDE, **options: Any) -> str:
    with pytest.raises(BuildError) as raised:
        planned(model, **options)
    return str(raised.value)


def test_it_is_found_by_name() -> None:
    assert get_backend(NAME) is BACKEND
    assert NAME in BACKENDS
    assert (BACKEND.name, BACKEND.batch_invariant, BACKEND.reproducible) == (NAME, False, True)
    with pytest.raises(BuildError, match=r"backend 'cuda' is unknown; known: onnxruntime, onnxruntime-cuda, tensorrt"):
        get_backend("cuda")


class TestTargets:
    def test_none_are_all(self) -> None:
        assert device_of().targets == device_of(target=("portable",)).targets == ("portable",)
        assert kernel_targets(("portable",)) == CUBIN_TARGETS

    def test_one(self) -> None:
        assert device_of(target=("sm90",)).targets == ("sm90",)
        assert kernel_targets(("sm90",)) == ("sm_90",)

    def test_several_are_in_one_order(self) -> None:
        assert device_of(target=("sm120", "sm80", "sm90")).targets == ("sm80", "sm90", "sm120")
        assert kernel_targets(("sm120", "sm80")) == ("sm_80", "sm_120")

    def test_duplicates_are_one(self) -> None:
        assert device_of(target=("sm90", "sm80", "sm90")).targets == ("sm80", "sm90")

    def test_all_by_name_are_not_called_portable(self) -> None:
        assert check_targets(TARGETS) == TARGETS
        assert kernel_targets(TARGETS) == CUBIN_TARGETS

    def test_unknown_ones(self) -> None:
        for target, said in (("sm75", "sm75"), ("sm_90", "sm_90"), ("current", "current"), ("", "''")):
            assert refused(target=("sm90", target)) == (
                f"target {said}: there is machine code for sm80, sm86, sm89, sm90, sm100, sm120; leave the target out, "
                "or choose portable: GPUs from 8.0 on compile what they have no machine code for when they load the "
                "engine"
            )

    def test_portable_stands_alone(self) -> None:
        text = "target portable stands alone: leave out portable, or the others"
        assert refused(target=("sm90", "portable")) == refused(target=("portable", "portable")) == text

    def test_every_gpu_from_ampere_on_runs_any(self) -> None:
        """There is PTX for those without machine code, whatever the targets."""
        assert device_of(target=("sm120",)).min_capability == MIN_CAPABILITY == 80


class TestWhatThereIsNot:
    def test_quantization(self) -> None:
        text = "quantization int4 is not available on device cuda yet; the backend tensorrt has it"
        assert refused(quantization="int4") == text

    def test_a_group_size_of_nothing(self) -> None:
        assert refused(group_size=128) == "group_size 128 has no meaning without quantization: leave it out"

    def test_other_dtypes(self) -> None:
        assert refused(dtype="float32") == "dtype float32 is not available on device cuda; bfloat16 and float16 are"
        text = "kv_cache_dtype float32 is not available on device cuda with dtype float16; float16 is"
        assert refused(dtype="float16", kv_cache_dtype="float32") == text

    def test_heads_that_the_kernels_lack(self) -> None:
        text = refused(with_attention(WIDE, head_dim=512, rope=None))
        assert text == "layers.0.mixer: head_dim 512 is not available on device cuda; up to 256 is"
        text = refused(with_attention(WIDE, num_heads=256, num_kv_heads=1))
        assert text == "layers.0.mixer: num_heads / num_kv_heads 256 is not available on device cuda; up to 128 is"

    def test_rows_that_the_kernels_lack(self) -> None:
        text = refused(replace(WIDE, hidden_size=16448))
        assert text == "hidden_size 16448 is not available on device cuda; up to 16384 is"
        assert device_of(replace(WIDE, hidden_size=16384, vocab_size=1 << 22)).targets
        text = refused(replace(WIDE, vocab_size=(1 << 22) + 1))
        assert text == "vocab_size 4194305 is not available on device cuda; up to 4194304 is"

    def test_triton(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def version(name: str) -> str:
            raise metadata.PackageNotFoundError(name)

        monkeypatch.setattr("importlib.metadata.version", version)
        with pytest.raises(ModuleNotFoundError) as raised:
            planned()
        assert raised.value.name == "triton"
        assert str(raised.value) == (
            "building an engine for device cuda needs Triton, which compiles its kernels and is not installed: "
            "pip install 'precast[cuda]'"
        )


class TestDtypes:
    def test_16_bit_checkpoints_keep_their_dtype(self) -> None:
        for dtype, pool in (("bfloat16", "kvrow.bf16/1"), ("float16", "kvrow.f16/1")):
            plan = planned(replace(WIDE, dtype=dtype))
            assert (plan.dtype, plan.kv_cache_dtype, plan.kv_layout, plan.notes) == (dtype, dtype, pool, ())

    def test_a_float32_checkpoint_becomes_bfloat16_and_says_so(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING):
            assert planned().notes == ("float32 checkpoint stored as bfloat16",)
        assert caplog.messages == ["float32 checkpoint stored as bfloat16"]
        assert planned(dtype="float16").notes == ()


def test_limits_of_a_step() -> None:
    cases: list[tuple[dict[str, Any], tuple[int, int]]] = [
        ({}, (256, 8192)),
        ({"max_num_tokens": 128}, (128, 128)),  # each sequence of a step has a token
        ({"max_batch_size": 10_000}, (10_000, 10_000)),
        ({"max_batch_size": 8, "max_num_tokens": 9}, (8, 9)),
    ]
    for options, expected in cases:
        device = device_of(**options)
        assert (device.max_batch_size, device.max_num_tokens) == expected
    text = "max_batch_size 64 exceeds max_num_tokens 16: each sequence of a step has a token"
    assert refused(max_batch_size=64, max_num_tokens=16) == text


def test_what_a_plan_says_of_the_rest() -> None:
    """Weights are beside the graph, asked or not."""
    device = device_of()
    assert device == device_of(weights="separate")
    assert (device.library, device.library_version) == ("onnxruntime", ONNXRUNTIME_MIN)
    assert device.kernel_compiler == f"triton {metadata.version('triton')}"
    assert (device.quantization, device.separate_weights) == (None, True)


def test_several_ranks() -> None:
    config = BuildConfig(tensor_parallel_size=2, pipeline_parallel_size=2)
    assert plan_ranks(WIDE, config, None, NAME).mapping == Mapping.of(2, 2)
    with pytest.raises(PartitionError, match=r"^tensor_parallel_size 3 does not divide TinyForCausalLM: "):
        plan_ranks(WIDE, BuildConfig(tensor_parallel_size=3), None, NAME)


def key_of(backend: str = NAME, **options: Any) -> str:
    config = BuildConfig(**options)
    plan, partition = plan_build(WIDE, config, backend), plan_ranks(WIDE, config, None, backend)
    return cache_key(describe_build([], [], plan, partition, config, backend))


@pytest.mark.parametrize(
    ("options", "same"),
    [
        ({}, {"target": ("portable",)}),
        ({"target": ("sm89", "sm120")}, {"target": ("sm120", "sm89")}),
        ({"target": ("sm90",)}, {"target": ("sm90", "sm90")}),
        ({}, {"max_batch_size": 256, "max_num_tokens": 8192}),
        ({}, {"weights": "separate"}),
    ],
)
def test_equal_engines_have_one_key(options: dict[str, Any], same: dict[str, Any]) -> None:
    assert key_of(**options) == key_of(**same)


def test_other_engines_have_other_keys() -> None:
    others: list[dict[str, Any]] = [
        {},
        {"target": ("sm90",)},
        {"target": ("sm80", "sm90")},
        {"target": TARGETS},
        {"dtype": "float16"},
        {"max_batch_size": 8},
        {"max_num_tokens": 512},
        {"tensor_parallel_size": 2},
    ]
    keys = {key_of(**options) for options in others}
    keys |= {key_of("onnxruntime"), key_of("onnxruntime", dtype="bfloat16")}
    assert len(keys) == len(others) + 2


def test_another_compiler_is_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    key = key_of()
    monkeypatch.setattr(
        "precast.builder.backends.onnxruntime_cuda.planning.find_kernel_compiler", lambda *_: "triton 99"
    )
    assert key_of() != key
