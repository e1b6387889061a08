"""Mistral (MistralForCausalLM): 7B, with a window in its first version, Nemo, whose heads do not add up to the hidden
size, and the text models after them.
"""

from dataclasses import replace

from precast.checkpoints import hf_config
from precast.checkpoints.families import decoder
from precast.checkpoints.families.base import Family
from precast.checkpoints.families.windows import FULL, SLIDING, layer_types, sliding_window
from precast.checkpoints.json_object import JsonObject
from precast.checkpoints.model_config import ModelConfig


def model_config(config: JsonObject, dtype: str) -> ModelConfig:
    """config.json -> ModelConfig. All layers have the window.

    A `layer_types` that says otherwise is refused: transformers ignores it in this class, and others do not.
    """
    max_positions = config.positive_integer("max_position_embeddings", 131072)
    num_layers = config.positive_integer("num_hidden_layers")
    window = sliding_window(config)
    if set(layer_types(config, num_layers) or ()) - {FULL if window is None else SLIDING}:
        raise config.error("layer_types", f"absent or the same in all layers of {hf_config.architecture(config)}")
    attention = decoder.attention(config, max_positions, head_dim=hf_config.head_dim(config))
    attentions = [replace(attention, window=window)] * num_layers
    return decoder.model_config(config, dtype, max_positions, attentions)


FAMILY = Family(model_config=model_config, tensor_names=decoder.TENSOR_NAMES, ignored_tensors=decoder.IGNORED_TENSORS)
