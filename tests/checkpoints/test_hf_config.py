"""What all families read alike, in both dialects."""

import math
from pathlib import Path
from typing import Any

import pytest

from precast.checkpoints import hf_config
from precast.checkpoints.errors import (
    ConfigError,
    UnsupportedActivationError,
    UnsupportedArchitectureError,
    UnsupportedDtypeError,
    UnsupportedRopeError,
)
from precast.checkpoints.json_object import JsonObject
from precast.checkpoints.rope import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeConfig,
    YarnScaling,
)

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
ATTENTION_FACTOR = math.sqrt(1 + math.log(4) / math.log(1024))  # 4096 positions, trained on 1024
FACTORS = {"short_factor": [1.0] * 32, "long_factor": [2.5] * 32}
LLAMA3_SCALING = Llama3Scaling(8.0, 1.0, 4.0, 8192)


def config(**values: Any) -> JsonObject:
    return JsonObject(values, "dir/config.json")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, RopeConfig(10000.0, 64)),
        ({"rope_theta": 5e5}, RopeConfig(5e5, 64)),
        ({"rope_theta": 5e5, "rope_scaling": None}, RopeConfig(5e5, 64)),
        ({"rope_theta": 5e5, "rope_scaling": {}}, RopeConfig(5e5, 64)),
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, RopeConfig(5e5, 64)),
        ({"rope_theta": 1.5, "rope_parameters": {"rope_theta": 5e5}}, RopeConfig(5e5, 64)),
        ({"rope_scaling": {"type": "linear", "factor": 4}}, RopeConfig(1e4, 64, LinearScaling(4.0))),
        ({"rope_scaling": {"rope_type": "linear", "type": "x", "factor": 4}}, RopeConfig(1e4, 64, LinearScaling(4.0))),
        ({"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}}, RopeConfig(5e5, 64, LLAMA3_SCALING)),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}},
            RopeConfig(5e5, 64, LLAMA3_SCALING),
        ),
        ({"rope_scaling": {"type": "dynamic", "factor": 2}}, RopeConfig(1e4, 64, DynamicScaling(2.0, 4096))),
        (
            {"rope_scaling": {"type": "longrope", **FACTORS}, "original_max_position_embeddings": 1024},
            RopeConfig(1e4, 64, LongRopeScaling((1.0,) * 32, (2.5,) * 32, 1024, ATTENTION_FACTOR)),
        ),
        (
            {"rope_parameters": {"rope_type": "longrope", **FACTORS, "factor": 1.0}},
            RopeConfig(1e4, 64, LongRopeScaling((1.0,) * 32, (2.5,) * 32, 4096, 1.0)),
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4, "beta_fast": 0, "beta_slow": 0, "truncate": False}},
            RopeConfig(1e4, 64, YarnScaling(4.0, 4096, truncate=False)),
        ),
        (
            {"rope_scaling": {"type": "yarn", "original_max_position_embeddings": 1024}},
            RopeConfig(1e4, 64, YarnScaling(4.0, 1024)),
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2}, "original_max_position_embeddings": 512},
            RopeConfig(1e4, 64, YarnScaling(2.0, 512)),
        ),
        (
            {
                "rope_scaling": {
                    "type": "yarn",
                    "factor": 40,
                    "beta_fast": 16,
                    "beta_slow": 2,
                    "mscale": 1.0,
                    "mscale_all_dim": 0.7,
                    "attention_factor": 1.25,
                }
            },
            RopeConfig(1e4, 64, YarnScaling(40.0, 4096, 16.0, 2.0, 1.25, 1.0, 0.7)),
        ),
    ],
)
def test_rope_of_both_dialects(values: dict[str, Any], expected: RopeConfig) -> None:
    assert hf_config.rope(config(**values), 64, 4096) == expected


@pytest.mark.parametrize("kind", ["su", "proportional", "mrope"])
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_other_rope_types_are_named(key: str, kind: str) -> None:
    with pytest.raises(UnsupportedRopeError) as caught:
        hf_config.rope(config(**{key: {"rope_type": kind, "factor": 2.0}}), 64, 4096)
    assert str(caught.value) == (
        f"dir/config.json: {key}: rope type {kind!r} is not supported; supported: default, linear, llama3, yarn, "
        "dynamic, longrope"
    )


@pytest.mark.parametrize(
    "values", [{"partial_rotary_factor": 0.5}, {"rope_parameters": {"partial_rotary_factor": 0.5}}]
)
def test_partial_rotation_is_not_ignored(values: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedRopeError, match=r"partial_rotary_factor 0\.5 is not supported"):
        hf_config.rope(config(**values), 64, 4096)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"long_factor": None}, "'long_factor' is missing"),
        ({"short_factor": [1.0, "2"]}, "'short_factor' must be a list of finite numbers"),
        ({"short_factor": 1.0}, "'short_factor' must be a list of finite numbers"),
        ({"original_max_position_embeddings": 1}, "'original_max_position_embeddings' must be at least 2"),
    ],
)
def test_longrope_parameters_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        hf_config.rope(config(rope_scaling={"rope_type": "longrope", **FACTORS, **changes}), 64, 4096)


@pytest.mark.parametrize("missing", ["factor", "low_freq_factor", "high_freq_factor"])
def test_a_missing_rope_parameter_is_named(missing: str) -> None:
    scaling = {"rope_type": "llama3", **LLAMA3, missing: None}
    with pytest.raises(ConfigError, match=f"rope_scaling: {missing!r} is missing"):
        hf_config.rope(config(rope_scaling=scaling), 64, 4096)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"torch_dtype": "float16"}, "float16"),
        ({"dtype": None, "torch_dtype": "torch.float32"}, "float32"),
        ({"dtype": "float32", "torch_dtype": "float16"}, "float32"),
        ({}, None),
    ],
)
def test_dtype_of_both_dialects(values: dict[str, Any], expected: str | None) -> None:
    assert hf_config.declared_dtype(config(**values)) == expected


def test_another_dtype_is_named() -> None:
    with pytest.raises(UnsupportedDtypeError, match="dtype 'float8_e4m3fn' is not supported; supported: float32, bf"):
        hf_config.declared_dtype(config(torch_dtype="float8_e4m3fn"))


@pytest.mark.parametrize(("quantization", "named"), [({"quant_method": "gptq"}, "gptq"), ({}, "by an unnamed method")])
def test_quantised_weights_are_refused(quantization: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedDtypeError, match=rf"the weights are quantised \({named}\)"):
        hf_config.refuse_quantization(config(quantization_config=quantization))


def test_another_activation_is_named() -> None:
    with pytest.raises(UnsupportedActivationError) as caught:
        hf_config.activation(config(hidden_act="gelu"), "hidden_act", {"silu": "silu"})
    assert str(caught.value) == "dir/config.json: hidden_act 'gelu' is not supported; supported: silu"


@pytest.mark.parametrize("value", [None, [], "LlamaForCausalLM", [3]])
def test_a_config_that_names_no_architecture_is_refused(value: Any) -> None:
    with pytest.raises(UnsupportedArchitectureError, match="'architectures' must name the model's class, and is"):
        hf_config.architecture(config(architectures=value))


def test_head_dim_is_derived_only_where_it_divides() -> None:
    assert hf_config.head_dim(config(head_dim=24)) == 24
    assert hf_config.head_dim(config(head_dim=None, hidden_size=64, num_attention_heads=4)) == 16
    with pytest.raises(ConfigError, match="hidden_size 64 is not a multiple of num_attention_heads 3"):
        hf_config.head_dim(config(hidden_size=64, num_attention_heads=3))


@pytest.mark.parametrize(
    ("values", "generation", "expected"),
    [
        ({"eos_token_id": 2}, None, (2,)),
        ({"eos_token_id": [5, 2]}, {"eos_token_id": [2, 9]}, (5, 2, 9)),
        ({}, {"eos_token_id": 9}, (9,)),
        ({"eos_token_id": None}, {}, ()),
    ],
)
def test_eos_ids_of_both_files_are_merged(values: Any, generation: Any, expected: tuple[int, ...]) -> None:
    second = None if generation is None else JsonObject(generation, "generation_config.json")
    assert hf_config.merged_token_ids(config(**values), second, "eos_token_id") == expected


def test_single_ids_come_from_the_config_first() -> None:
    generation = JsonObject({"bos_token_id": 7, "pad_token_id": 8}, "generation_config.json")
    assert hf_config.token_id(config(bos_token_id=0), generation, "bos_token_id") == 0
    assert hf_config.token_id(config(), generation, "bos_token_id") == 7
    assert hf_config.token_id(config(pad_token_id=-1), generation, "pad_token_id") is None
    assert hf_config.token_id(config(), None, "pad_token_id") is None


def test_a_directory_without_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no config\.json; give the directory of a Hugging Face checkpoint"):
        hf_config.read_config(tmp_path)
