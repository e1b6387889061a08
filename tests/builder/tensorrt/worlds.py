"""A tiny world for TensorRT: models whose matrices have whole groups, plans and lowered networks."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precast.builder.backends.tensorrt.lowering.pipeline import tensorrt_passes
from precast.builder.network.decoder import emit_network
from precast.builder.network.network import Network
from precast.builder.passes.base import run_passes
from precast.builder.plan import BuildPlan, DevicePlan
from precast.builder.quantize.formats import quant_format
from precast.builder.quantize.round_to_nearest import dequantize, find_scales, round_values
from precast.checkpoints.model_config import ModelConfig, RopeConfig
from precast.checkpoints.ranks.rank_model import whole_model
from precast.checkpoints.tensor_info import NUMPY_DTYPES
from tests.builder.worlds import LAYER, MODEL, RandomTensors, with_attention, with_mlp

WIDE = replace(MODEL, hidden_size=128, layers=(LAYER, LAYER))
WIDE = with_mlp(with_attention(WIDE, head_dim=32, rope=RopeConfig(10000.0, rotary_dim=32)), intermediate_size=256)
"""Two layers, with matrices of 128 and 256 columns."""

TENSORRT = DevicePlan(
    library="tensorrt_rtx",
    library_version="1.7.1.116",
    kernel_compiler="triton 3",
    targets=("sm89",),
    min_capability=89,
    quantization=None,
    separate_weights=False,
    max_batch_size=4,
    max_num_tokens=64,
)


def tensorrt_plan(dtype: str = "bfloat16", **changes: Any) -> BuildPlan:
    """A plan with changed fields of its TensorRT part."""
    return BuildPlan(dtype, dtype, 16, 64, device=replace(TENSORRT, **changes))


def lowered(model: ModelConfig = WIDE, plan: BuildPlan | None = None) -> Network:
    """The network after all passes."""
    plan = plan or tensorrt_plan()
    network = emit_network(whole_model(model), plan)
    run_passes(network, tensorrt_passes(plan))
    return network


class RoundedTensors(RandomTensors):
    """The tensors of a config, with the layers' matrices as a format stores them.

    q, k and v are one matrix, and gate and up: they share a scale of the matrix, where there is one.
    """

    def __init__(self, model: ModelConfig, quantization: str, dtype: str) -> None:
        super().__init__(model)
        self._format, self._dtype = quant_format(quantization), NUMPY_DTYPES[dtype]

    def tensor(self, name: str) -> NDArray[np.float32]:
        w = super().tensor(name)
        if not name.startswith("layers.") or w.ndim != 2:
            return w
        block, part, _ = name.rsplit(".", 2)
        together = next((parts for parts in (("q", "k", "v"), ("gate", "up")) if part in parts), (part,))
        matrices = {each: super(RoundedTensors, self).tensor(f"{block}.{each}.weight") for each in together}
        whole = np.concatenate(list(matrices.values()))
        scales = find_scales(self._format, whole, self._dtype)
        rounded = dequantize(self._format, round_values(self._format, whole, scales), scales)
        ends = np.cumsum([len(matrix) for matrix in matrices.values()])
        return np.split(rounded, ends[:-1])[together.index(part)]
