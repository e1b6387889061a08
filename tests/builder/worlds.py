"""A tiny world for the builder's tests: configs, plans, random tensors and networks of them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precast.builder.network.decoder import emit_network
from precast.builder.network.implemented import check_implemented
from precast.builder.network.network import Network
from precast.builder.network.text import node_text, weight_text
from precast.builder.passes.base import run_passes
from precast.builder.passes.pipeline import PIPELINE
from precast.builder.plan import BuildPlan
from precast.checkpoints.model_config import (
    AttentionConfig,
    HeadConfig,
    LayerConfig,
    MlpConfig,
    ModelConfig,
    NormConfig,
    RopeConfig,
)
from precast.checkpoints.ranks.rank_model import whole_model
from precast.checkpoints.tensor_shapes import tensor_shapes

FLOAT32 = BuildPlan("float32", "float32", tokens_per_block=16, max_seq_len=64)
BFLOAT16 = BuildPlan("bfloat16", "bfloat16", tokens_per_block=32, max_seq_len=64)

# A scale that is not head_dim ** -0.5, so that one which is made up would be noticed.
ATTENTION = AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=8, scale=0.25, rope=RopeConfig(10000.0, rotary_dim=8))
MLP = MlpConfig(intermediate_size=48)
NORM = NormConfig(epsilon=1e-5)
LAYER = LayerConfig(ATTENTION, MLP, mixer_norm=NORM, feed_forward_norm=NORM)
MODEL = ModelConfig(
    architecture="TinyForCausalLM",
    vocab_size=40,
    hidden_size=32,
    max_position_embeddings=64,
    layers=(LAYER,),
    final_norm=NORM,
)


def with_attention(model: ModelConfig = MODEL, **changes: Any) -> ModelConfig:
    """`model` with changed fields of every layer's attention."""
    return _with_layer_part(model, "mixer", changes)


def with_mlp(model: ModelConfig = MODEL, **changes: Any) -> ModelConfig:
    """`model` with changed fields of every layer's feed-forward."""
    return _with_layer_part(model, "feed_forward", changes)


def with_rope(model: ModelConfig = MODEL, **changes: Any) -> ModelConfig:
    """`model` with changed fields of every layer's rotary embedding."""
    layers = []
    for layer in model.layers:
        assert isinstance(layer.mixer, AttentionConfig)
        assert layer.mixer.rope is not None
        layers.append(replace(layer, mixer=replace(layer.mixer, rope=replace(layer.mixer.rope, **changes))))
    return replace(model, layers=tuple(layers))


def with_layers(model: ModelConfig = MODEL, **changes: Any) -> ModelConfig:
    """`model` with changed fields of every layer."""
    return replace(model, layers=tuple(replace(layer, **changes) for layer in model.layers))


def _with_layer_part(model: ModelConfig, part: str, changes: Mapping[str, Any]) -> ModelConfig:
    layers = [replace(layer, **{part: replace(getattr(layer, part), **changes)}) for layer in model.layers]
    return replace(model, layers=tuple(layers))


TIED = replace(MODEL, head=HeadConfig(tied=True))


class RandomTensors:
    """The tensors of a config, seeded by their names; it stands in for a checkpoint."""

    def __init__(self, model: ModelConfig) -> None:
        self._tensors: dict[str, NDArray[np.float32]] = {}
        for index, (name, shape) in enumerate(tensor_shapes(model).items()):
            values = np.random.default_rng(index).standard_normal(shape)
            values = 1 + values / 5 if "norm" in name else values / shape[-1] ** 0.5
            self._tensors[name] = values.astype(np.float32)
        self.released: list[str] = []

    def tensor(self, name: str) -> NDArray[np.float32]:
        return self._tensors[name]

    def release(self, name: str) -> None:
        self.released.append(name)


def emitted(model: ModelConfig = MODEL, plan: BuildPlan = FLOAT32) -> Network:
    """The network before the passes."""
    check_implemented(model)
    return emit_network(whole_model(model), plan)


def finished(model: ModelConfig = MODEL, plan: BuildPlan = FLOAT32) -> Network:
    """The network after the passes."""
    network = emitted(model, plan)
    run_passes(network, PIPELINE)
    return network


def nodes(network: Network) -> list[str]:
    """Each node as "name: shape = Op(inputs)", without its attributes."""
    return [node_text(node).split(" {")[0] for node in network.graph]


def weights(network: Network) -> list[str]:
    return [weight_text(network, name) for name in network.weights]
