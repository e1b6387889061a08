"""Qwen 3 (Qwen3ForCausalLM): each head of queries and keys is normed before it is rotated; windows as in Qwen 2."""

from dataclasses import replace

from precast.checkpoints.families import decoder
from precast.checkpoints.families.base import Family
from precast.checkpoints.families.windows import layer_windows
from precast.checkpoints.json_object import JsonObject
from precast.checkpoints.model_config import ModelConfig, QkNormConfig


def model_config(config: JsonObject, dtype: str) -> ModelConfig:
    """config.json -> ModelConfig."""
    max_positions = config.positive_integer("max_position_embeddings", 32768)
    bias = config.boolean("attention_bias", False)
    head_dim = config.positive_integer("head_dim", 128)
    attention = decoder.attention(config, max_positions, head_dim=head_dim, qkv_bias=bias, output_bias=bias)
    attention = replace(attention, qk_norm=QkNormConfig(decoder.norm(config)))
    attentions = [replace(attention, window=window) for window in layer_windows(config)]
    return decoder.model_config(config, dtype, max_positions, attentions)


FAMILY = Family(
    model_config=model_config,
    tensor_names={
        **decoder.TENSOR_NAMES,
        "layers.{i}.attention.q_norm": "model.layers.{i}.self_attn.q_norm",
        "layers.{i}.attention.k_norm": "model.layers.{i}.self_attn.k_norm",
    },
    ignored_tensors=decoder.IGNORED_TENSORS,
)
