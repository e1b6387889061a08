"""What a build for TensorRT decides, and what it refuses before it starts."""

from dataclasses import replace
from importlib import metadata
from typing import Any

import pytest

from precast.builder.backends.tensorrt import planning
from precast.builder.backends.tensorrt.library import TensorRtLibrary, find_library
from precast.builder.backends.tensorrt.targets import RTX_TARGETS, check_targets, kernel_capabilities
from precast.builder.build_config import BuildConfig
from precast.builder.cache.key import cache_key, describe_build
from precast.builder.errors import BuildError
from precast.builder.plan import BuildPlan, DevicePlan, plan_build, plan_ranks
from precast.checkpoints.errors import PartitionError
from precast.checkpoints.model_config import ModelConfig
from precast.checkpoints.ranks.mapping import Mapping
from tests.builder.tensorrt.worlds import WIDE
from tests.builder.worlds import MODEL, with_attention, with_mlp

RTX = TensorRtLibrary("tensorrt_rtx", "1.7.1")
FULL = TensorRtLibrary("tensorrt", "11.4.0")


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that these tests need not load."""
    monkeypatch.setattr(planning, "find_library", lambda: RTX)


def planned(model: ModelConfig = WIDE, **options: Any) -> BuildPlan:
    return plan_build(model, BuildConfig(**options), "tensorrt")


def tensorrt_of(model: ModelConfig = WIDE, **options: Any) -> DevicePlan:
    tensorrt = planned(model, **options).device
    assert tensorrt is not None
    return tensorrt


def plan_all(model: ModelConfig, **options: Any) -> None:
    """What a build decides before it starts."""
    planned(model, **options)
    plan_ranks(model, BuildConfig(**options), None, "tensorrt")


def refused(model: ModelConfig = WIDE, **options: Any) -> str:
    with pytest.raises(BuildError) as raised:
        plan_all(model, **options)
    return str(raised.value)


class TestTargets:
    def test_without_a_target_a_plan_is_portable(self) -> None:
        assert tensorrt_of().targets == ("portable",)
        assert tensorrt_of().min_capability == 80

    def test_targets_ascend(self) -> None:
        assert check_targets(RTX, ("sm120", "sm89", "sm120")) == ("sm89", "sm120")

    @pytest.mark.parametrize("target", ["sm90", "sm100", "sm103"])
    def test_a_card_that_may_refuse_the_plan_is_refused(self, target: str) -> None:
        text = refused(target=(target,))
        assert text.startswith(f"target {target}: TensorRT-RTX has no such target")
        assert "has not been seen; there are sm80, sm86, sm89, sm120, sm121 and portable" in text

    def test_other_targets(self) -> None:
        assert "sm75: the kernels of PagedAttention and bfloat16 need 8.0" in refused(target=("sm75",))
        assert "sm1: TensorRT-RTX 1.7.1 has no such target; there are sm80, " in refused(target=("sm1",))
        assert refused(target=("sm89", "")).startswith("target '': TensorRT-RTX 1.7.1 has no such target; ")
        assert refused(target=("sm89", "portable")) == "target portable stands alone: leave out portable, or the others"

    def test_tensorrt_itself_builds_for_the_gpu_that_is_there(self) -> None:
        assert check_targets(FULL, None) == check_targets(FULL, ("current",)) == ("current",)
        with pytest.raises(BuildError, match=r"^target sm89: TensorRT 11\.4\.0 builds for this machine's GPU only: "):
            check_targets(FULL, ("sm89",))

    def test_kernels_are_compiled_for_what_runs_them(self) -> None:
        assert kernel_capabilities(("sm86", "sm120")) == (86, 120)
        assert kernel_capabilities(("portable",)) == kernel_capabilities(("current",)) == (80, 86, 89, 90, 100, 120)
        # A cubin of 12.0 is for 12.0 only: 12.1 compiles the PTX, and so needs no more than that.
        assert all(kernel_capabilities((target,)) for target in RTX_TARGETS)


class TestDtypes:
    def test_16_bit_checkpoints_keep_their_dtype(self) -> None:
        for dtype, weights, pool in (
            ("bfloat16", "dense.bf16/1", "kvrow.bf16/1"),
            ("float16", "dense.f16/1", "kvrow.f16/1"),
        ):
            plan = planned(replace(WIDE, dtype=dtype))
            assert (plan.dtype, plan.kv_cache_dtype, plan.notes) == (dtype, dtype, ())
            assert (plan.weight_layout, plan.kv_layout) == (weights, pool)

    def test_a_float32_checkpoint_becomes_bfloat16_and_says_so(self) -> None:
        assert planned().notes == ("float32 checkpoint stored as bfloat16",)

    def test_other_dtypes_are_refused(self) -> None:
        assert refused(dtype="float32") == "dtype float32 is not available on TensorRT; bfloat16 and float16 are"
        text = "kv_cache_dtype float32 is not available on TensorRT with dtype float16; float16 is"
        assert refused(dtype="float16", kv_cache_dtype="float32") == text


class TestQuantization:
    @pytest.mark.parametrize(("name", "least"), [("int8", 80), ("int4", 80), ("fp8", 89), ("nvfp4", 100)])
    def test_a_portable_plan_names_the_least_gpu(self, name: str, least: int) -> None:
        plan = tensorrt_of(quantization=name)
        assert (plan.quantization, plan.min_capability) == (name, least)

    def test_a_format_that_a_target_lacks(self) -> None:
        text = refused(quantization="fp8", target=("sm80", "sm86", "sm89"))
        assert text == (
            "fp8 is not available on sm80, sm86: it needs compute capability 8.9; leave them out, or choose another "
            "format"
        )
        assert "nvfp4 is not available on sm89: it needs compute capability 10.0" in refused(
            quantization="nvfp4", target=("sm89",)
        )

    def test_groups_that_tensorrt_lacks(self) -> None:
        assert refused(quantization="int4", group_size=32) == "int4 group 32 is not available on TensorRT; 128 is"
        assert tensorrt_of(quantization="int4", group_size=128).quantization == "int4"
        text = "int8 group 128 is not available on TensorRT; it has one scale for each row"
        assert refused(quantization="int8", group_size=128) == text

    def test_a_group_size_of_nothing(self) -> None:
        assert refused(group_size=128).startswith("group_size 128 has no meaning without quantization: ")

    def test_the_gpu_that_is_there_is_not_judged(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(planning, "find_library", lambda: FULL)
        assert tensorrt_of(quantization="nvfp4").targets == ("current",)

    def test_a_model_without_whole_groups(self) -> None:
        text = refused(with_mlp(WIDE, intermediate_size=192), quantization="int4")
        assert text == (
            "layers.0 intermediate_size is 192, which groups of 128 do not divide, so int4 is not available for this "
            "model; int8 is"
        )
        assert "layers.0 hidden_size is 32" in refused(MODEL, quantization="int4")
        assert "num_heads * head_dim is 192" in refused(
            with_attention(WIDE, num_heads=6, num_kv_heads=2), quantization="int4"
        )

    def test_a_rank_without_whole_groups(self) -> None:
        """128 columns of o are 64 on each of two ranks; rows may be divided as one likes."""
        config = BuildConfig(quantization="int4", tensor_parallel_size=2)
        assert refused(quantization="int4", tensor_parallel_size=2) == (
            "layers.0 num_heads * head_dim / tensor_parallel_size 2 is 64, which groups of 128 do not divide, so int4 "
            "is not available for this model on so many ranks; int8 is"
        )
        for fine in (replace(config, quantization="int8"), replace(config, quantization="nvfp4")):
            assert plan_ranks(WIDE, fine, None, "tensorrt").mapping.world_size == 2
        wide = with_mlp(with_attention(WIDE, num_heads=8), intermediate_size=384)
        with pytest.raises(BuildError, match=r"intermediate_size / tensor_parallel_size 2 is 192, "):
            plan_ranks(wide, config, None, "tensorrt")

    def test_quantised_weights_are_inside(self) -> None:
        assert refused(quantization="int8", weights="separate").startswith(
            "weights separate with quantization int8 is not available on TensorRT: "
        )

    def test_an_unknown_format(self) -> None:
        assert refused(quantization="int2") == "quantization 'int2' is unknown; known: int8, int4, fp8, nvfp4"


def test_limits_of_a_step() -> None:
    assert (tensorrt_of().max_batch_size, tensorrt_of().max_num_tokens) == (256, 8192)
    cases: list[tuple[dict[str, Any], tuple[int, int]]] = [
        ({"max_num_tokens": 128}, (128, 128)),  # each sequence of a step has a token
        ({"max_batch_size": 10_000}, (10_000, 10_000)),
        ({"max_batch_size": 8, "max_num_tokens": 9}, (8, 9)),
    ]
    for options, expected in cases:
        plan = tensorrt_of(**options)
        assert (plan.max_batch_size, plan.max_num_tokens) == expected
    text = "max_batch_size 64 exceeds max_num_tokens 16: each sequence of a step has a token"
    assert refused(max_batch_size=64, max_num_tokens=16) == text


@pytest.mark.parametrize(
    ("options", "same"),
    [
        ({}, {"target": ("portable",)}),
        ({"target": ("sm89", "sm120")}, {"target": ("sm120", "sm89")}),
        ({}, {"max_batch_size": 256, "max_num_tokens": 8192}),
        ({"quantization": "int4"}, {"quantization": "int4", "group_size": 128}),
    ],
)
def test_equal_engines_have_one_key(options: dict[str, Any], same: dict[str, Any]) -> None:
    keys = [key_of(**options), key_of(**same), key_of(target=("sm86",))]
    assert keys[0] == keys[1] != keys[2]


def key_of(**options: Any) -> str:
    config = BuildConfig(**options)
    plan, partition = plan_build(WIDE, config, "tensorrt"), plan_ranks(WIDE, config, None, "tensorrt")
    return cache_key(describe_build([], [], plan, partition, config, "tensorrt"))


def test_heads_that_the_kernels_lack_are_refused() -> None:
    text = refused(with_attention(WIDE, head_dim=512, rope=None))
    assert text == "layers.0.mixer: head_dim 512 is not available on TensorRT; up to 256 is"
    text = refused(with_attention(WIDE, num_heads=256, num_kv_heads=1))
    assert text == "layers.0.mixer: num_heads / num_kv_heads 256 is not available on TensorRT; up to 128 is"


def test_several_ranks() -> None:
    config = BuildConfig(tensor_parallel_size=2, pipeline_parallel_size=2)
    assert plan_ranks(WIDE, config, None, "tensorrt").mapping == Mapping.of(2, 2)
    with pytest.raises(PartitionError, match=r"^tensor_parallel_size 3 does not divide TinyForCausalLM: "):
        plan_ranks(WIDE, BuildConfig(tensor_parallel_size=3), None, "tensorrt")


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("target", ("sm89", "sm120"), "target sm89,sm120"),
        ("quantization", "int4", "quantization int4"),
        ("group_size", 128, "group_size 128"),
        ("weights", "separate", "weights separate"),
        ("max_batch_size", 8, "max_batch_size 8"),
        ("max_num_tokens", 8, "max_num_tokens 8"),
    ],
)
def test_options_of_tensorrt_have_no_meaning_on_the_cpu(option: str, value: object, text: str) -> None:
    with pytest.raises(BuildError, match=rf"^{text} has no meaning on CPUs: leave it out, or build"):
        plan_build(WIDE, BuildConfig(**{option: value}))  # type: ignore[arg-type]


def test_float16_keys_and_values_are_refused_on_the_cpu() -> None:
    with pytest.raises(BuildError, match=r"^kv_cache_dtype float16 is not available on CPUs; "):
        plan_build(WIDE, BuildConfig(kv_cache_dtype="float16"))


class TestLibrary:
    def test_the_rtx_library_is_preferred(self, monkeypatch: pytest.MonkeyPatch) -> None:
        present = {"tensorrt": "tensorrt-cu13", "tensorrt_rtx": "tensorrt-rtx-cu13"}
        monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: {k: [v] for k, v in present.items()})
        monkeypatch.setattr("importlib.metadata.version", {"tensorrt-cu13": "11.4", "tensorrt-rtx-cu13": "1.7"}.get)
        assert find_library() == TensorRtLibrary("tensorrt_rtx", "1.7")
        del present["tensorrt_rtx"]
        assert find_library() == TensorRtLibrary("tensorrt", "11.4")
        del present["tensorrt"]
        with pytest.raises(ModuleNotFoundError, match=r"which is not installed: pip install 'precast\[tensorrt\]'$"):
            find_library()

    def test_without_triton_there_are_no_kernels(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def version(name: str) -> str:
            raise metadata.PackageNotFoundError(name)

        monkeypatch.setattr("importlib.metadata.version", version)
        with pytest.raises(ModuleNotFoundError, match=r"needs Triton, .*: pip install 'precast\[tensorrt\]'$"):
            planned()
