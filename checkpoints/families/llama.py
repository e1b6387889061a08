"""Llama 1, 2, 3, 3.1 and 3.2 (LlamaForCausalLM), and the many models that share the class."""

from precast.checkpoints import hf_config
from precast.checkpoints.families import decoder
from precast.checkpoints.families.base import Family
from precast.checkpoints.json_object import JsonObject
from precast.checkpoints.model_config import ModelConfig


def model_config(config: JsonObject, dtype: str) -> ModelConfig:
    """config.json -> ModelConfig. `pretraining_tp` is ignored: it splits matrices without changing the model."""
    max_positions = config.positive_integer("max_position_embeddings", 2048)
    bias = config.boolean("attention_bias", False)
    head_dim = hf_config.head_dim(config)
    attention = decoder.attention(config, max_positions, head_dim=head_dim, qkv_bias=bias, output_bias=bias)
    num_layers = config.positive_integer("num_hidden_layers")
    mlp_bias = config.boolean("mlp_bias", False)
    return decoder.model_config(config, dtype, max_positions, [attention] * num_layers, mlp_bias=mlp_bias)


FAMILY = Family(model_config=model_config, tensor_names=decoder.TENSOR_NAMES, ignored_tensors=decoder.IGNORED_TENSORS)
