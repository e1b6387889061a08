"""Qwen 1.5, 2 and 2.5 (Qwen2ForCausalLM): queries, keys and values have biases, and some layers may have a window."""

from dataclasses import replace

from precast.checkpoints import hf_config
from precast.checkpoints.families import decoder
from precast.checkpoints.families.base import Family
from precast.checkpoints.families.windows import layer_windows
from precast.checkpoints.json_object import JsonObject
from precast.checkpoints.model_config import ModelConfig


def model_config(config: JsonObject, dtype: str) -> ModelConfig:
    """config.json -> ModelConfig."""
    max_positions = config.positive_integer("max_position_embeddings", 32768)
    attention = decoder.attention(config, max_positions, head_dim=hf_config.head_dim(config), qkv_bias=True)
    attentions = [replace(attention, window=window) for window in layer_windows(config)]
    return decoder.model_config(config, dtype, max_positions, attentions)


FAMILY = Family(model_config=model_config, tensor_names=decoder.TENSOR_NAMES, ignored_tensors=decoder.IGNORED_TENSORS)
