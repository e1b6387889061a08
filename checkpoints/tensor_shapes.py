"""The tensors that a model config calls for: canonical names and shapes.

    embedding.weight                                 [rows, hidden]
    layers.{i}.mixer_norm.weight                     [hidden]
    layers.{i}.attention.{q,k,v,o}.{weight,bias}     [out, in], [out]
    layers.{i}.attention.{q,k}_norm.weight           [head_dim], or [out] where all heads are normed together
    layers.{i}.feed_forward_norm.weight              [hidden]
    layers.{i}.feed_forward.{gate,up,down}.{weight,bias}
    final_norm.weight                                [hidden]
    lm_head.{weight,bias}                            [vocab, hidden]; no weight where it is tied

A matrix is stored as [out_features, in_features].
"""

from collections.abc import Iterator
from typing import TypeVar

from precast.checkpoints.errors import UnsupportedArchitectureError
from precast.checkpoints.model_config import (
    AttentionConfig,
    HeadConfig,
    LayerConfig,
    MlpConfig,
    ModelConfig,
    NormConfig,
)

T = TypeVar("T")
Shape = tuple[int, ...]


def tensor_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Canonical name -> shape of every tensor of the model, from the embedding to the head.

    Raises UnsupportedArchitectureError for a block that has no canonical names.
    """
    shapes: dict[str, Shape] = {
        "embedding.weight": (config.embedding.num_rows or config.vocab_size, config.hidden_size)
    }
    for index, layer in enumerate(config.layers):
        shapes.update({f"layers.{index}.{name}": shape for name, shape in layer_shapes(layer, config.hidden_size)})
    shapes.update(_norm("final_norm", config.final_norm, config.hidden_size))
    shapes.update(_head(config))
    return shapes


def layer_shapes(layer: LayerConfig, hidden_size: int) -> Iterator[tuple[str, Shape]]:
    """Name within the layer ("attention.q.weight") and shape of each of its tensors."""
    yield from _norm("mixer_norm", layer.mixer_norm, hidden_size)
    if layer.mixer is not None:
        yield from _attention(_known(layer.mixer, AttentionConfig), hidden_size)
    yield from _norm("feed_forward_norm", layer.feed_forward_norm, hidden_size)
    if layer.feed_forward is not None:
        yield from _mlp(_known(layer.feed_forward, MlpConfig), hidden_size)


def _known(block: object, kind: type[T]) -> T:
    """`block`, which must be a `kind`."""
    if not isinstance(block, kind):
        raise UnsupportedArchitectureError(f"a model with a {type(block).__name__} is not supported")
    return block


def _norm(name: str, norm: NormConfig | None, size: int) -> Iterator[tuple[str, Shape]]:
    if norm is not None and norm.weight:
        yield f"{name}.weight", (size,)
    if norm is not None and norm.bias:
        yield f"{name}.bias", (size,)


def _attention(attention: AttentionConfig, hidden_size: int) -> Iterator[tuple[str, Shape]]:
    q_size, kv_size = attention.num_heads * attention.head_dim, attention.num_kv_heads * attention.head_dim
    key_bias = attention.qkv_bias if attention.key_bias is None else attention.key_bias
    yield from _linear("attention.q", q_size, hidden_size, attention.qkv_bias)
    yield from _linear("attention.k", kv_size, hidden_size, key_bias)
    yield from _linear("attention.v", kv_size, hidden_size, attention.qkv_bias)
    yield from _linear("attention.o", hidden_size, q_size, attention.output_bias)
    if attention.qk_norm is not None:
        per_head = attention.qk_norm.scope == "head"
        yield from _norm("attention.q_norm", attention.qk_norm.norm, attention.head_dim if per_head else q_size)
        yield from _norm("attention.k_norm", attention.qk_norm.norm, attention.head_dim if per_head else kv_size)


def _mlp(mlp: MlpConfig, hidden_size: int) -> Iterator[tuple[str, Shape]]:
    if mlp.gated:
        yield from _linear("feed_forward.gate", mlp.intermediate_size, hidden_size, mlp.bias)
    yield from _linear("feed_forward.up", mlp.intermediate_size, hidden_size, mlp.bias)
    yield from _linear("feed_forward.down", hidden_size, mlp.intermediate_size, mlp.bias)


def _head(config: ModelConfig) -> Iterator[tuple[str, Shape]]:
    head = _known(config.head, HeadConfig)
    if not head.tied:
        yield "lm_head.weight", (config.vocab_size, config.hidden_size)
    if head.bias:
        yield "lm_head.bias", (config.vocab_size,)


def _linear(name: str, out_features: int, in_features: int, bias: bool) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (out_features, in_features)
    if bias:
        yield f"{name}.bias", (out_features,)
