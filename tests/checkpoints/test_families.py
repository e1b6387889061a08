"""Every family: its tensors against transformers' own loading, and its config in both dialects."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from precast.checkpoints import hf_config
from precast.checkpoints.checkpoint import open_checkpoint
from precast.checkpoints.errors import ConfigError
from precast.checkpoints.families import MODULE_OF_ARCHITECTURE, find_family
from precast.checkpoints.families.windows import layer_windows, sliding_window
from precast.checkpoints.json_object import JsonObject
from precast.checkpoints.model_config import (
    AttentionConfig,
    HeadConfig,
    LayerConfig,
    MlpConfig,
    ModelConfig,
    NormConfig,
    QkNormConfig,
    RopeConfig,
)
from precast.checkpoints.rope import YarnScaling
from precast.checkpoints.tensor_shapes import tensor_shapes
from tests.tiny_llama import VARIANTS, config_class, load_reference

FULL, SLIDING = "full_attention", "sliding_attention"


def read(config: dict[str, Any], dtype: str = "bfloat16") -> ModelConfig:
    (architecture,) = config["architectures"]
    return find_family(architecture, "config.json").model_config(JsonObject(config, "config.json"), dtype)


def attentions(model: ModelConfig) -> list[AttentionConfig]:
    return [layer.mixer for layer in model.layers if isinstance(layer.mixer, AttentionConfig)]


def test_every_family_has_a_tiny_model() -> None:
    assert {f"{variant.family}ForCausalLM" for variant in VARIANTS.values()} == set(MODULE_OF_ARCHITECTURE)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_tensor_is_what_transformers_loads(variant: str, tiny_llama: Callable[[str], Path]) -> None:
    path = tiny_llama(variant)
    expected = load_reference(path).state_dict()
    family = find_family(f"{VARIANTS[variant].family}ForCausalLM", variant)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.config.dtype == VARIANTS[variant].dtype
        assert list(checkpoint.names()) == list(tensor_shapes(checkpoint.config))
        for name in checkpoint.names():
            assert checkpoint.info(name).dtype == VARIANTS[variant].dtype
            tensor = checkpoint.tensor(name)
            np.testing.assert_array_equal(tensor.astype(np.float32), expected.pop(family.file_name(name)).numpy())
        is_tied = VARIANTS[variant].config.get("tie_word_embeddings", False)
        assert list(expected) == (["lm_head.weight"] if is_tied else [])


@pytest.mark.parametrize("variant", VARIANTS)
def test_both_dialects_mean_the_same(variant: str, tiny_llama: Callable[[str], Path]) -> None:
    """transformers reads the file, writes it in its own dialect, and nothing changes."""
    path = tiny_llama(variant)
    reread = config_class(VARIANTS[variant].family).from_pretrained(path)
    rewritten = json.loads(reread.to_json_string(use_diff=False))
    assert "rope_parameters" in rewritten
    original = hf_config.read_config(path)
    model_config = find_family(hf_config.architecture(original), variant).model_config
    assert model_config(JsonObject(rewritten, "rewritten"), "float32") == model_config(original, "float32")


def test_mistral_7b() -> None:
    """The config.json of the first version, with a window, and of the second, without."""
    config = {
        "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
        "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 32768,
        "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", "transformers_version": "4.34.0.dev0", "use_cache": True, "vocab_size": 32000,
    }  # fmt: skip
    norm = NormConfig(1e-5)
    attention = AttentionConfig(32, 8, 128, 128**-0.5, RopeConfig(10000.0, 128), window=4096)
    assert read(config) == ModelConfig(
        architecture="MistralForCausalLM",
        vocab_size=32000,
        hidden_size=4096,
        max_position_embeddings=32768,
        layers=(LayerConfig(attention, MlpConfig(14336), norm, norm),) * 32,
        final_norm=norm,
        head=HeadConfig(tied=False),
        dtype="bfloat16",
    )
    second = attentions(read({**config, "rope_theta": 1e6, "sliding_window": None}))
    assert {attention.window for attention in second} == {None}
    assert {attention.window for attention in attentions(read({k: config[k] for k in config if "slid" not in k}))} == {
        4096
    }


def test_mistrals_head_dim_is_its_own() -> None:
    """Mistral Nemo: 32 heads of 128, a hidden size of 5120."""
    nemo = {
        "architectures": ["MistralForCausalLM"], "head_dim": 128, "hidden_act": "silu", "hidden_size": 5120,
        "intermediate_size": 14336, "max_position_embeddings": 131072, "num_attention_heads": 32,
        "num_hidden_layers": 40, "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 1e6,
        "sliding_window": None, "vocab_size": 131072,
    }  # fmt: skip
    assert tensor_shapes(read(nemo))["layers.0.attention.o.weight"] == (5120, 4096)
    assert attentions(read(nemo))[0].scale == 128**-0.5


def test_layer_types_that_contradict_mistral_are_refused() -> None:
    config = {
        "architectures": ["MistralForCausalLM"], "hidden_act": "silu", "hidden_size": 64, "intermediate_size": 8,
        "num_attention_heads": 4, "num_hidden_layers": 2, "sliding_window": 8, "vocab_size": 32,
    }  # fmt: skip
    assert [a.window for a in attentions(read({**config, "layer_types": [SLIDING, SLIDING]}))] == [8, 8]
    with pytest.raises(ConfigError, match="'layer_types' must be absent or the same in all layers of Mistral"):
        read({**config, "layer_types": [SLIDING, FULL]})
    with pytest.raises(ConfigError, match="'layer_types' must be absent or the same"):
        read({**config, "layer_types": [SLIDING, SLIDING], "sliding_window": None})


def test_qwen2_5_7b() -> None:
    config = {
        "architectures": ["Qwen2ForCausalLM"], "bos_token_id": 151643, "eos_token_id": 151645, "hidden_act": "silu",
        "hidden_size": 3584, "intermediate_size": 18944, "max_position_embeddings": 32768, "max_window_layers": 28,
        "model_type": "qwen2", "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4,
        "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 131072, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", "use_cache": True, "use_sliding_window": False, "vocab_size": 152064,
        "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"},
    }  # fmt: skip
    rope = RopeConfig(1e6, 128, YarnScaling(4.0, 32768))
    attention = AttentionConfig(28, 4, 128, 128**-0.5, rope, qkv_bias=True)
    model = read(config)
    assert attentions(model) == [attention] * 28
    shapes = tensor_shapes(model)
    assert shapes["layers.0.attention.k.bias"] == (512,)
    assert "layers.0.attention.o.bias" not in shapes


def test_qwen3_8b() -> None:
    config = {
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096,
        "intermediate_size": 12288, "max_position_embeddings": 40960, "max_window_layers": 36, "model_type": "qwen3",
        "num_attention_heads": 32, "num_hidden_layers": 36, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
        "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", "use_sliding_window": False, "vocab_size": 151936,
    }  # fmt: skip
    norm = QkNormConfig(NormConfig(1e-6))
    attention = AttentionConfig(32, 8, 128, 128**-0.5, RopeConfig(1e6, 128), qk_norm=norm)
    assert attentions(read(config)) == [attention] * 36
    shapes = tensor_shapes(read(config))
    assert shapes["layers.35.attention.q_norm.weight"] == shapes["layers.35.attention.k_norm.weight"] == (128,)
    assert "layers.0.attention.q.bias" not in shapes
    assert "layers.0.attention.o.bias" in tensor_shapes(read({**config, "attention_bias": True}))


WINDOWED = {"num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": 8}


@pytest.mark.parametrize(
    ("values", "windows"),
    [
        ({"num_hidden_layers": 30, "use_sliding_window": True}, [None] * 28 + [4096] * 2),
        ({**WINDOWED, "max_window_layers": 1}, [None, 8, 8, 8]),
        ({**WINDOWED, "max_window_layers": 0}, [8] * 4),
        ({**WINDOWED, "max_window_layers": 4}, [None] * 4),
        ({**WINDOWED, "max_window_layers": 1, "use_sliding_window": False}, [None] * 4),
        ({**WINDOWED, "max_window_layers": 1, "sliding_window": None}, [None] * 4),
        ({**WINDOWED, "max_window_layers": 1, "layer_types": [SLIDING, FULL, FULL, SLIDING]}, [8, None, None, 8]),
        ({"num_hidden_layers": 2, "layer_types": [FULL, FULL]}, [None, None]),
    ],
)
def test_qwens_windows(values: dict[str, Any], windows: list[int | None]) -> None:
    assert layer_windows(JsonObject(values, "config.json")) == windows


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**WINDOWED, "layer_types": [FULL]}, "'layer_types' must be a list of 4 names, each"),
        ({**WINDOWED, "layer_types": "full"}, "'layer_types' must be a list of 4 names, each"),
        ({**WINDOWED, "layer_types": [FULL, FULL, FULL, "chunked_attention"]}, "must be a list of 4 names, each"),
        ({**WINDOWED, "sliding_window": 0}, "'sliding_window' must be at least 1"),
        (
            {**WINDOWED, "layer_types": [SLIDING] * 4, "use_sliding_window": False},
            "has 'sliding_attention', and there is no window: set 'use_sliding_window' and 'sliding_window'",
        ),
    ],
)
def test_windows_that_make_no_sense_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        layer_windows(JsonObject(values, "config.json"))


def test_a_window_that_is_null_is_none_and_one_that_is_absent_the_default() -> None:
    assert sliding_window(JsonObject({"sliding_window": None}, "config.json")) is None
    assert sliding_window(JsonObject({}, "config.json")) == 4096
