"""Families of models: one module each, loaded when a checkpoint names one of its architectures."""

from importlib import import_module

from precast.checkpoints.errors import UnsupportedArchitectureError
from precast.checkpoints.families.base import Family

MODULE_OF_ARCHITECTURE = {
    "LlamaForCausalLM": "precast.checkpoints.families.llama",
    "MistralForCausalLM": "precast.checkpoints.families.mistral",
    "Qwen2ForCausalLM": "precast.checkpoints.families.qwen2",
    "Qwen3ForCausalLM": "precast.checkpoints.families.qwen3",
}
"""`architectures[0]` of a config.json -> the module whose `FAMILY` converts it."""


def find_family(architecture: str, source: str) -> Family:
    """The family of an architecture. `source` names the config in the error."""
    if architecture not in MODULE_OF_ARCHITECTURE:
        raise UnsupportedArchitectureError(
            f"{source}: architecture {architecture!r} is not supported; "
            f"supported: {', '.join(sorted(MODULE_OF_ARCHITECTURE))}"
        )
    family = import_module(MODULE_OF_ARCHITECTURE[architecture]).FAMILY
    assert isinstance(family, Family)
    return family
