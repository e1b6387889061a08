"""What families of decoders have in common: pre-norm, grouped-query attention with rotary embeddings, a gated
feed-forward, and the names of the tensors. Each family says what is its own.
"""

import re
from collections.abc import Sequence

from precast.checkpoints import hf_config
from precast.checkpoints.json_object import JsonObject
from precast.checkpoints.model_config import (
    AttentionConfig,
    HeadConfig,
    LayerConfig,
    MlpConfig,
    ModelConfig,
    NormConfig,
)
from precast.checkpoints.rope import DynamicScaling

ACTIVATIONS = {"silu": "silu"}

TENSOR_NAMES = {
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
}

# Files converted before transformers 4.31 carry the rotary frequencies, which follow from the config.
IGNORED_TENSORS = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


def norm(config: JsonObject) -> NormConfig:
    """The norm of every place."""
    return NormConfig(epsilon=config.number("rms_norm_eps", 1e-6))


def attention(
    config: JsonObject, max_positions: int, *, head_dim: int, qkv_bias: bool = False, output_bias: bool = False
) -> AttentionConfig:
    """The attention of every layer, before what is a family's own."""
    num_heads = config.positive_integer("num_attention_heads")
    return AttentionConfig(
        num_heads=num_heads,
        num_kv_heads=config.positive_integer("num_key_value_heads", num_heads),
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=hf_config.rope(config, head_dim, max_positions),
        qkv_bias=qkv_bias,
        output_bias=output_bias,
    )


def model_config(
    config: JsonObject,
    dtype: str,
    max_positions: int,
    attentions: Sequence[AttentionConfig],
    *,
    mlp_bias: bool = False,
) -> ModelConfig:
    """The model whose layers have the given attentions."""
    every_norm = norm(config)
    mlp = MlpConfig(
        intermediate_size=config.positive_integer("intermediate_size"),
        activation=hf_config.activation(config, "hidden_act", ACTIVATIONS),
        bias=mlp_bias,
    )
    layers = [LayerConfig(mixer, mlp, mixer_norm=every_norm, feed_forward_norm=every_norm) for mixer in attentions]
    return ModelConfig(
        architecture=hf_config.architecture(config),
        vocab_size=config.positive_integer("vocab_size"),
        hidden_size=config.positive_integer("hidden_size"),
        max_position_embeddings=_longest_sequence(attentions, max_positions),
        layers=tuple(layers),
        final_norm=every_norm,
        head=HeadConfig(tied=config.boolean("tie_word_embeddings", False)),
        dtype=dtype,
    )


def _longest_sequence(attentions: Sequence[AttentionConfig], max_positions: int) -> int:
    """Dynamic rope is for sequences beyond `max_position_embeddings`."""
    ropes = [attention.rope for attention in attentions if attention.rope is not None]
    scaled = [rope.scaling.max_position_embeddings for rope in ropes if isinstance(rope.scaling, DynamicScaling)]
    return max([max_positions, *scaled])
