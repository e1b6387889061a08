"""Llama 1, 2, 3, 3.1 and 3.2 (LlamaForCausalLM), and the many models that share the class."""

import re

from precast.checkpoints import hf_config
from precast.checkpoints.families.base import Family
from precast.checkpoints.json_object import JsonObject
from precast.checkpoints.model_config import (
    AttentionConfig,
    HeadConfig,
    LayerConfig,
    MlpConfig,
    ModelConfig,
    NormConfig,
)

ACTIVATIONS = {"silu": "silu"}


def model_config(config: JsonObject, dtype: str) -> ModelConfig:
    """config.json -> ModelConfig. `pretraining_tp` is ignored: it splits matrices without changing the model."""
    max_positions = config.positive_integer("max_position_embeddings", 2048)
    norm = NormConfig(epsilon=config.number("rms_norm_eps", 1e-6))
    layer = LayerConfig(
        mixer=_attention(config, max_positions),
        feed_forward=MlpConfig(
            intermediate_size=config.positive_integer("intermediate_size"),
            activation=hf_config.activation(config, "hidden_act", ACTIVATIONS),
            bias=config.boolean("mlp_bias", False),
        ),
        mixer_norm=norm,
        feed_forward_norm=norm,
    )
    return ModelConfig(
        architecture=hf_config.architecture(config),
        vocab_size=config.positive_integer("vocab_size"),
        hidden_size=config.positive_integer("hidden_size"),
        max_position_embeddings=max_positions,
        layers=(layer,) * config.positive_integer("num_hidden_layers"),
        final_norm=norm,
        head=HeadConfig(tied=config.boolean("tie_word_embeddings", False)),
        dtype=dtype,
    )


def _attention(config: JsonObject, max_positions: int) -> AttentionConfig:
    num_heads = config.positive_integer("num_attention_heads")
    head_dim = hf_config.head_dim(config, config.positive_integer("hidden_size"), num_heads)
    bias = config.boolean("attention_bias", False)
    return AttentionConfig(
        num_heads=num_heads,
        num_kv_heads=config.positive_integer("num_key_value_heads", num_heads),
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=hf_config.rope(config, head_dim, max_positions),
        qkv_bias=bias,
        output_bias=bias,
    )


FAMILY = Family(
    model_config=model_config,
    tensor_names={
        "embedding": "model.embed_tokens",
        "layers.{i}.mixer_norm": "model.layers.{i}.input_layernorm",
        "layers.{i}.attention.q": "model.layers.{i}.self_attn.q_proj",
        "layers.{i}.attention.k": "model.layers.{i}.self_attn.k_proj",
        "layers.{i}.attention.v": "model.layers.{i}.self_attn.v_proj",
        "layers.{i}.attention.o": "model.layers.{i}.self_attn.o_proj",
        "layers.{i}.feed_forward_norm": "model.layers.{i}.post_attention_layernorm",
        "layers.{i}.feed_forward.gate": "model.layers.{i}.mlp.gate_proj",
        "layers.{i}.feed_forward.up": "model.layers.{i}.mlp.up_proj",
        "layers.{i}.feed_forward.down": "model.layers.{i}.mlp.down_proj",
        "final_norm": "model.norm",
        "lm_head": "lm_head",
    },
    # Files converted before transformers 4.31 carry the rotary frequencies, which follow from the config.
    ignored_tensors=re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"),
)
