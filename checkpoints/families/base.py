"""What a family of models provides: its config as a `ModelConfig`, and its tensors' names."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from precast.checkpoints.json_object import JsonObject
from precast.checkpoints.model_config import ModelConfig


@dataclass(frozen=True)
class Family:
    """How checkpoints of a family are read.

    Attributes:
        model_config: (config.json, dtype of the weights) -> ModelConfig. Raises CheckpointError for what is
            missing or not supported, and ValueError for what a dataclass of the config refuses at birth.
        tensor_names: Canonical module name -> the file's, `{i}` for a layer's index in both;
            "layers.{i}.attention.q" -> "model.layers.{i}.self_attn.q_proj". What follows the module's name
            (".weight", ".bias") is the same in both.
        ignored_tensors: Matches names of tensors that files may hold and the model does not need.
    """

    model_config: Callable[[JsonObject, str], ModelConfig]
    tensor_names: Mapping[str, str]
    ignored_tensors: re.Pattern[str]

    def file_name(self, canonical: str) -> str:
        """The name that the files use for a canonical tensor name."""
        module, _, parameter = canonical.rpartition(".")
        layer = re.match(r"layers\.(\d+)\.", module)
        if layer is None:
            return f"{self.tensor_names[module]}.{parameter}"
        template = self.tensor_names["layers.{i}." + module[layer.end() :]]
        return f"{template.replace('{i}', layer[1])}.{parameter}"
