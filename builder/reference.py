"""A whole model in NumPy, from a config and its tensors: what an engine's logits are compared with.

It shares no code with the network blocks and the passes; each op is the plugin's own reference. It is made to be
right, not fast: sums are taken in float64 where the plugin's reference does.

Shapes: T tokens of one sequence, H hidden_size, V vocab_size.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from precast.builder.network.implemented import check_implemented, implemented
from precast.builder.plan import KV_LAYOUTS, WEIGHT_LAYOUTS
from precast.builder.weights import Tensors
from precast.checkpoints.model_config import (
    AttentionConfig,
    HeadConfig,
    LayerConfig,
    MlpConfig,
    ModelConfig,
    NormConfig,
)
from precast.checkpoints.rope import rope_table
from precast.plugins.embedding.reference import embedding
from precast.plugins.embedding.schema import EmbeddingAttributes
from precast.plugins.gated_activation.reference import gated_activation
from precast.plugins.gated_activation.schema import GatedActivationAttributes
from precast.plugins.linear.pack import pack
from precast.plugins.linear.reference import linear
from precast.plugins.linear.schema import LinearAttributes
from precast.plugins.paged_attention.reference import paged_attention
from precast.plugins.paged_attention.schema import PagedAttentionAttributes
from precast.plugins.rms_norm.reference import rms_norm
from precast.plugins.rms_norm.schema import RmsNormAttributes

Float32 = NDArray[np.float32]
TOKENS_PER_BLOCK = 16


class ReferenceModel:
    """Token ids -> logits.

    Args:
        config: The model. Raises UnsupportedModelError where the builder would.
        tensors: Its weights; one is read at a time, so memory is bounded by the largest.
        dtype: Weights are rounded to it, and activations where the ops say so: "float32" or "bfloat16".
        kv_cache_dtype: What keys and values are rounded to; None: as `dtype`.
        max_seq_len: Of the engine, on which some rotary embeddings depend; None: what the model can.
    """

    def __init__(
        self,
        config: ModelConfig,
        tensors: Tensors,
        *,
        dtype: str = "float32",
        kv_cache_dtype: str | None = None,
        max_seq_len: int | None = None,
    ) -> None:
        check_implemented(config)
        self._config = config
        self._tensors = tensors
        self._layout = WEIGHT_LAYOUTS[dtype]
        self._max_seq_len = max_seq_len or config.max_position_embeddings
        self._kv_layout = KV_LAYOUTS[kv_cache_dtype or dtype]

    def __call__(self, token_ids: Sequence[int]) -> Float32:
        """The logits [T, V] of every position of one sequence, which starts at position 0."""
        x_TH = self._embedding(np.array(token_ids, np.int32))
        for index, layer in enumerate(self._config.layers):
            x_TH = self._layer(layer, x_TH, f"layers.{index}")
        return self._head(self._norm(self._config.final_norm, x_TH, "final_norm"))

    def _embedding(self, token_ids_T: NDArray[np.int32]) -> Float32:
        attributes = EmbeddingAttributes(self._config.vocab_size, self._config.hidden_size, self._layout)
        return embedding(token_ids_T, self._packed("embedding.weight"), attributes)

    def _layer(self, layer: LayerConfig, x_TH: Float32, name: str) -> Float32:
        mixer = implemented(layer.mixer, AttentionConfig, f"{name}.mixer")
        mlp = implemented(layer.feed_forward, MlpConfig, f"{name}.feed_forward")
        normed = self._norm(layer.mixer_norm, x_TH, f"{name}.mixer_norm")
        x_TH = x_TH + self._attention(mixer, normed, f"{name}.attention")
        normed = self._norm(layer.feed_forward_norm, x_TH, f"{name}.feed_forward_norm")
        return x_TH + self._feed_forward(mlp, normed, f"{name}.feed_forward")

    def _attention(self, attention: AttentionConfig, x_TH: Float32, name: str) -> Float32:
        key_bias = attention.qkv_bias if attention.key_bias is None else attention.key_bias
        biases = {"q": attention.qkv_bias, "k": key_bias, "v": attention.qkv_bias}
        qkv = np.concatenate([self._linear(x_TH, f"{name}.{part}", biases[part]) for part in "qkv"], axis=-1)
        rope = None if attention.rope is None else rope_table(attention.rope, self._max_seq_len)
        attributes = PagedAttentionAttributes(
            attention.num_heads,
            attention.num_kv_heads,
            attention.head_dim,
            attention.scale,
            self._kv_layout,
            TOKENS_PER_BLOCK,
            1.0 if rope is None else rope.attention_factor,
            attention.window or 0,
            0.0 if attention.qk_norm is None else attention.qk_norm.norm.epsilon,
            0 if rope is None else rope.start,
        )
        num_tokens = len(x_TH)
        blocks = np.arange(-(-num_tokens // TOKENS_PER_BLOCK), dtype=np.int32)
        starts, lengths = np.array([0, num_tokens], np.int32), np.array([num_tokens], np.int32)
        pool = np.zeros((len(blocks), attributes.block_bytes), np.uint8)
        norms = () if attention.qk_norm is None else tuple(self._plain(f"{name}.{part}_norm.weight") for part in "qk")
        inv_freq = None if rope is None else rope.frequencies
        heads = paged_attention(qkv, starts, lengths, blocks[None], pool, attributes, inv_freq, *norms)
        return self._linear(heads, f"{name}.o", attention.output_bias)

    def _feed_forward(self, mlp: MlpConfig, x_TH: Float32, name: str) -> Float32:
        gate_up = [self._linear(x_TH, f"{name}.{part}", mlp.bias) for part in ("gate", "up")]
        activated = gated_activation(np.concatenate(gate_up, axis=-1), GatedActivationAttributes(mlp.activation))
        return self._linear(activated, f"{name}.down", mlp.bias)

    def _head(self, x_TH: Float32) -> Float32:
        head = implemented(self._config.head, HeadConfig, "head")
        return self._linear(x_TH, "lm_head", head.bias, weight="embedding.weight" if head.tied else None)

    def _norm(self, norm: NormConfig | None, x_TH: Float32, name: str) -> Float32:
        epsilon = implemented(norm, NormConfig, name).epsilon
        return rms_norm(x_TH, self._plain(f"{name}.weight"), RmsNormAttributes(epsilon))[0]

    def _linear(self, x: Float32, name: str, has_bias: bool, weight: str | None = None) -> Float32:
        weight = weight or f"{name}.weight"
        out_features, in_features = self._tensors.tensor(weight).shape
        bias = self._plain(f"{name}.bias") if has_bias else None
        return linear(x, self._packed(weight), LinearAttributes(in_features, out_features, self._layout), bias)

    def _packed(self, name: str) -> NDArray[np.uint8]:
        return pack(self._layout, [self._tensors.tensor(name)])

    def _plain(self, name: str) -> Float32:
        return self._tensors.tensor(name).astype(np.float32)
