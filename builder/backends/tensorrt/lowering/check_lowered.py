"""The last pass: nothing goes to TensorRT that it does not have."""

from precast.builder.network.network import Network
from precast.builder.passes.base import InvariantError, Pass
from precast.builder.passes.check_supported import versioned_op
from precast.checkpoints.weights_index import PLAIN_LAYOUT
from precast.plugins import TENSORRT_LAYOUTS, TENSORRT_OPS

BUILTIN_OPS = (
    "Add",
    "Cast",
    "Constant",
    "DequantizeLinear",
    "Equal",
    "Exp",
    "Gather",
    "Gemm",
    "Less",
    "Log",
    "Max",
    "Min",
    "Mul",
    "RMSNormalization",
    "ReduceMax",
    "ReduceMin",
    "ReduceSum",
    "Reshape",
    "Sigmoid",
    "Slice",
    "Split",
    "Squeeze",
    "Sub",
    "TopK",
    "Transpose",
    "Unsqueeze",
    "Where",
)


class CheckLowered(Pass):
    """Refuse a graph that was not lowered whole; change nothing.

    1. A node is one of ONNX's BUILTIN_OPS, or of an op that has a plugin.
    2. Weights are plain. The layouts of KV pools are those of the plugin.
    """

    name = "check_lowered"

    def apply(self, network: Network) -> bool:
        # 1.
        for node in network.graph:
            if (node.op_type not in BUILTIN_OPS) if node.domain == "" else (versioned_op(node) not in TENSORRT_OPS):
                raise InvariantError(
                    f"node {node.name} is a {node.domain}.{node.op_type}, which TensorRT does not have"
                )
        # 2.
        for name, recipe in network.weights.items():
            if recipe.layout != PLAIN_LAYOUT:
                raise InvariantError(f"initialiser {name} is packed as {recipe.layout}, which TensorRT does not have")
        for cache in network.kv_caches:
            if cache.layout not in TENSORRT_LAYOUTS:
                raise InvariantError(
                    f"KV pool {cache.name} has the layout {cache.layout}, which the plugin does not have"
                )
        return False
