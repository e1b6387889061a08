"""A tiny world for ONNX Runtime on GPUs: plans, lowered networks, and our ops as a device computes them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx.reference.op_run import OpRun

from precast.builder.backends.onnxruntime_cuda.lowering.pipeline import cuda_passes
from precast.builder.network.decoder import emit_network
from precast.builder.network.network import Network
from precast.builder.passes.base import run_passes
from precast.builder.plan import BuildPlan, DevicePlan
from precast.checkpoints.model_config import ModelConfig
from precast.checkpoints.ranks.rank_model import whole_model
from precast.plugins.gated_activation.reference import gated_activation
from precast.plugins.gated_activation.schema import GatedActivationAttributes
from precast.plugins.greedy_tokens.reference import greedy_tokens
from precast.plugins.top_candidates.reference import top_candidates
from tests.builder.tensorrt.worlds import WIDE

Array = NDArray[Any]

CUDA = DevicePlan(
    library="onnxruntime",
    library_version="1.31",
    kernel_compiler="triton 3",
    targets=("sm90",),
    min_capability=80,
    quantization=None,
    separate_weights=True,
    max_batch_size=4,
    max_num_tokens=64,
)


def cuda_plan(dtype: str = "bfloat16") -> BuildPlan:
    return BuildPlan(dtype, dtype, 16, 64, device=CUDA)


def lowered(model: ModelConfig = WIDE, plan: BuildPlan | None = None) -> Network:
    """The network after all passes."""
    plan = plan or cuda_plan()
    network = emit_network(whole_model(model), plan)
    run_passes(network, cuda_passes(plan))
    return network


class RmsNorm(OpRun):
    """As plugins/rms_norm/schema.py says of devices."""

    op_domain = "ai.precast"

    def _run(
        self,
        x: Array,
        weight: Array,
        residual: Array | None = None,
        *,
        num_features: int,
        epsilon: float,
        has_residual: int,
        dtype: str,
    ) -> tuple[Array, ...]:
        assert x.dtype.name == weight.dtype.name == dtype
        assert (x.shape[1], weight.shape) == (num_features, (num_features,))
        assert (residual is not None) == bool(has_residual) == (len(self.onnx_node.output) == 2)
        total = x if residual is None else x + residual
        wide = total.astype(np.float32)
        scale = 1 / np.sqrt(np.mean(np.square(wide), axis=1, keepdims=True) + np.float32(epsilon))
        y = (wide * scale).astype(x.dtype).astype(np.float32) * weight.astype(np.float32)
        return (y.astype(x.dtype), total)[: len(self.onnx_node.output)]


class GatedActivation(OpRun):
    op_domain = "ai.precast"

    def _run(self, gate_up: Array, *, activation: str, num_features: int, dtype: str) -> tuple[Array]:
        assert (gate_up.shape[1], gate_up.dtype.name) == (2 * num_features, dtype)
        product = gated_activation(gate_up.astype(np.float32), GatedActivationAttributes(activation))
        return (product.astype(gate_up.dtype),)


class GreedyTokens(OpRun):
    op_domain = "ai.precast"

    def _run(self, logits: Array, *, vocab_size: int) -> tuple[Array, Array]:
        assert (logits.shape[1], logits.dtype.name) == (vocab_size, "float32")
        return greedy_tokens(logits)


class TopCandidates(OpRun):
    op_domain = "ai.precast"

    def _run(self, logits: Array, *, vocab_size: int, num_candidates: int) -> tuple[Array, Array]:
        assert (logits.shape[1], logits.dtype.name) == (vocab_size, "float32")
        return top_candidates(logits, num_candidates)


OPS: tuple[type[OpRun], ...] = (RmsNorm, GatedActivation, GreedyTokens, TopCandidates)
"""Beside PagedAttention and collectives."""
