"""Runs a lowered network with ONNX's own reference evaluator, PagedAttention by the op's reference in NumPy.

So a lowered graph is checked by what ONNX says that its operators mean, without TensorRT and without a GPU.
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from precast.builder.backends.separate_weights import weights_as_inputs
from precast.builder.network.network import Network
from precast.builder.network.onnx_model import onnx_bytes
from precast.builder.quantize.recipe import QuantizedRecipe
from precast.builder.weights import Recipe
from precast.plugins.paged_attention.reference import paged_attention
from precast.plugins.paged_attention.schema import PagedAttentionAttributes

NUM_BLOCKS = 16
_POOL_DTYPES: dict[str, Any] = {"kvrow.bf16/1": ml_dtypes.bfloat16, "kvrow.f16/1": np.float16}


class PagedAttention(OpRun):
    """On a device: its inputs and outputs are of 16 bits, and those that are absent are left out.

    The pool is written in place; a plugin of TensorRT has it as an output too.
    """

    op_domain = "ai.precast"
    runs: ClassVar[list[str]] = []

    def _run(self, qkv: Any, starts: Any, lengths: Any, tables: Any, kv: Any, *rest: Any, **values: Any) -> Any:
        attributes = PagedAttentionAttributes(
            **{field.name: values[field.name] for field in fields(PagedAttentionAttributes)}
        )
        optional = list(rest)
        inv_freq = optional.pop(0) if values["rotary_dim"] else None
        sinks = optional.pop() if values["has_sinks"] else None
        assert len(optional) == 2 * values["has_qk_norm"]
        if inv_freq is not None:
            assert inv_freq.shape == (values["num_frequencies"], values["rotary_dim"] // 2)
        q_norm, k_norm = optional or (None, None)
        assert kv.flags.c_contiguous
        pool = kv.view(np.uint8)
        widened = qkv.astype(np.float32)
        output = paged_attention(widened, starts, lengths, tables, pool, attributes, inv_freq, q_norm, k_norm, sinks)
        return (output.astype(qkv.dtype), kv)[: len(self.onnx_node.output)]


def graph_array(recipe: Recipe, stored: NDArray[Any]) -> NDArray[Any]:
    """What the bytes in a weights file are to the graph."""
    if recipe.graph_dtype == recipe.stored_dtype:
        return stored
    dtype = np.dtype(getattr(ml_dtypes, recipe.graph_dtype))
    if isinstance(recipe, QuantizedRecipe) and recipe.stored_shape != recipe.graph_shape:
        low, high = stored & 0xF, stored >> 4
        nibbles = np.stack([low, high], axis=-1).reshape(recipe.graph_shape)
        if recipe.graph_dtype == "int4":
            signed: NDArray[Any] = (nibbles.astype(np.int8) ^ 8) - 8
            return signed.astype(dtype)
        values: NDArray[Any] = nibbles.view(dtype)
        return values
    viewed: NDArray[Any] = stored.view(dtype).reshape(recipe.graph_shape)
    return viewed


class LoweredRunner:
    """Token ids of one sequence -> the logits of every position, in one step."""

    def __init__(self, network: Network, tensors: Any, ops: Sequence[type[OpRun]] = ()) -> None:
        """`ops` are those of ours, beside PagedAttention, that the network has."""
        offsets = dict.fromkeys(network.weights, 0)
        model = onnx.ModelProto.FromString(weights_as_inputs(onnx_bytes(network, offsets)))
        self._evaluator = ReferenceEvaluator(model, new_ops=[PagedAttention, *ops])
        self._weights = {
            name: graph_array(recipe, recipe.materialise(tensors)) for name, recipe in network.weights.items()
        }
        self._pools = {
            cache.name: np.full((NUM_BLOCKS, cache.block_bytes // 2), np.nan, _POOL_DTYPES[cache.layout])
            for cache in network.kv_caches
        }
        self._tokens_per_block = next(
            node.attributes["tokens_per_block"].as_int() for node in network.graph if node.op_type == "PagedAttention"
        )
        self._tables = [group.block_tables for group in network.kv_groups]

    def __call__(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = self.outputs(token_ids)["logits"]
        return logits

    def outputs(self, token_ids: Sequence[int], **changes: Sequence[int]) -> dict[str, NDArray[Any]]:
        """All outputs but pools. `changes` are other inputs than those of a step with one new sequence."""
        blocks = np.arange(-(-len(token_ids) // self._tokens_per_block))[::-1]
        inputs: dict[str, Any] = {
            "token_ids": token_ids,
            "query_starts": [0, len(token_ids)],
            "context_lengths": [len(token_ids)],
            **dict.fromkeys(self._tables, blocks[None]),
            "logit_rows": range(len(token_ids)),
            "token_sources": [-1] * len(token_ids),
            "previous_tokens": [0] * 4,
            **changes,
        }
        arrays = {name: np.array(value, np.int32) for name, value in inputs.items()}
        results = self._evaluator.run(None, {**arrays, **self._pools, **self._weights})
        outputs = dict(zip(self._evaluator.output_names, map(np.asarray, results), strict=True))
        for name, pool in self._pools.items():
            assert outputs.pop(f"{name}.out", pool) is pool
        return outputs
