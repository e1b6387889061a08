"""Compute in 16 bits: activations, and the plain weights that are added to or multiplied with them."""

import onnx_ir as ir

from precast.builder.network.inputs import LOGITS
from precast.builder.network.network import DTYPES, Network
from precast.builder.network.nodes import builtin_node, is_op
from precast.builder.passes.base import Pass
from precast.builder.plan import BuildPlan
from precast.builder.weights import WeightRecipe
from precast.checkpoints.weights_index import PLAIN_LAYOUT
from precast.plugins.paged_attention import schema as paged_attention


class UseHalf(Pass):
    """Give every activation the dtype of the build, bfloat16 or float16.

    1. The outputs of all nodes that were float32 are of the build's dtype; the graph's output `logits`, if
       it has one, is float32 still, by a Cast.
    2. Plain weights are of the build's dtype, except those that PagedAttention reads, which computes with them in
       float32.
    3. The graph has this opset and IR version.
    """

    name = "use_half"

    def __init__(self, plan: BuildPlan, opset: int, ir_version: int) -> None:
        self._dtype, self._opset, self._ir_version = plan.dtype, opset, ir_version

    def apply(self, network: Network) -> bool:
        # 1.
        for node in network.graph:
            for value in node.outputs:
                if value.dtype == ir.DataType.FLOAT:
                    value.dtype = DTYPES[self._dtype]
        for output in list(network.graph.outputs):
            if output.name == LOGITS:
                _cast_to_float(network.graph, output)
        # 2.
        for name, recipe in list(network.weights.items()):
            value = network.graph.initializers[name]
            if recipe.layout == PLAIN_LAYOUT and not any(is_op(use.node, paged_attention) for use in value.uses()):
                network.weights[name] = WeightRecipe(PLAIN_LAYOUT, recipe.sources, self._dtype)
                value.dtype = DTYPES[self._dtype]
        # 3.
        network.graph.opset_imports[""] = self._opset
        network.model.ir_version = self._ir_version
        return True


def _cast_to_float(graph: ir.Graph, logits: ir.Value) -> None:
    node = logits.producer()
    assert node is not None  # an output of the graph that is a node's
    logits.name = f"{LOGITS}.half"
    total = ir.Value(name=LOGITS, shape=logits.shape, type=ir.TensorType(ir.DataType.FLOAT))
    cast = builtin_node("Cast", [logits], total, f"{LOGITS}.cast", to=ir.DataType.FLOAT.value)
    graph.insert_after(node, cast)
    graph.outputs[list(graph.outputs).index(logits)] = total
