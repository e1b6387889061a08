"""The Llama family: what its configs mean. test_families.py has what holds for all families."""

from collections.abc import Callable
from pathlib import Path

from precast.checkpoints.checkpoint import open_checkpoint
from precast.checkpoints.families.llama import FAMILY, model_config
from precast.checkpoints.json_object import JsonObject
from precast.checkpoints.model_config import (
    AttentionConfig,
    HeadConfig,
    LayerConfig,
    MlpConfig,
    ModelConfig,
    NormConfig,
    RopeConfig,
)
from precast.checkpoints.rope import Llama3Scaling
from precast.checkpoints.tensor_shapes import tensor_shapes

NORM = NormConfig(1e-5)


def test_llama_2_7b() -> None:
    """The config.json of a Llama 2 as transformers 4 wrote it."""
    config = {
        "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
        "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 11008, "max_position_embeddings": 4096,
        "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
        "pretraining_tp": 2, "rms_norm_eps": 1e-05, "rope_scaling": None, "tie_word_embeddings": False,
        "torch_dtype": "float16", "transformers_version": "4.31.0.dev0", "use_cache": True, "vocab_size": 32000,
    }  # fmt: skip
    attention = AttentionConfig(32, 32, 128, 128**-0.5, RopeConfig(10000.0, 128))
    assert model_config(JsonObject(config, "config.json"), "float16") == ModelConfig(
        architecture="LlamaForCausalLM",
        vocab_size=32000,
        hidden_size=4096,
        max_position_embeddings=4096,
        layers=(LayerConfig(attention, MlpConfig(11008), NORM, NORM),) * 32,
        final_norm=NORM,
        head=HeadConfig(tied=False),
        dtype="float16",
    )


def test_llama_3_2_1b() -> None:
    config = {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009], "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048,
        "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "llama",
        "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8, "pretraining_tp": 1,
        "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "rope_scaling": {
            "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3",
        },
        "vocab_size": 128256,
    }  # fmt: skip
    result = model_config(JsonObject(config, "config.json"), "bfloat16")
    rope = RopeConfig(500000.0, 64, Llama3Scaling(32.0, 1.0, 4.0, 8192))
    attention = AttentionConfig(32, 8, 64, 0.125, rope)
    assert result.layers == (LayerConfig(attention, MlpConfig(8192), NORM, NORM),) * 16
    assert result.head == HeadConfig(tied=True)
    assert tensor_shapes(result)["layers.15.attention.k.weight"] == (512, 2048)
    assert "lm_head.weight" not in tensor_shapes(result)


def test_biases_follow_their_switches(tiny_llama: Callable[[str], Path]) -> None:
    with open_checkpoint(tiny_llama("attention_bias")) as checkpoint:
        assert checkpoint.info("layers.1.attention.o.bias").shape == (64,)
        assert "layers.1.feed_forward.up.bias" not in checkpoint.names()
    with open_checkpoint(tiny_llama("mlp_bias")) as checkpoint:
        assert checkpoint.info("layers.1.feed_forward.gate.bias").shape == (160,)
        assert "layers.1.attention.q.bias" not in checkpoint.names()


def test_file_names_of_layers_and_of_the_rest() -> None:
    assert FAMILY.file_name("layers.12.attention.q.bias") == "model.layers.12.self_attn.q_proj.bias"
    assert FAMILY.file_name("embedding.weight") == "model.embed_tokens.weight"
    assert FAMILY.ignored_tensors.fullmatch("model.layers.3.self_attn.rotary_emb.inv_freq")
    assert not FAMILY.ignored_tensors.fullmatch("model.layers.3.self_attn.q_proj.weight")
