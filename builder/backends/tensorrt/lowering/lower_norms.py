"""RmsNorm becomes ONNX's RMSNormalization."""

import onnx_ir as ir

from precast.builder.network.network import Network
from precast.builder.network.nodes import builtin_node, input_at, is_op, required_input
from precast.builder.passes.base import Pass
from precast.plugins.rms_norm import schema as rms_norm


class LowerNorms(Pass):
    """Replace RmsNorm(x, weight[, residual]) by RMSNormalization(Add(residual, x), weight).

    1. RMSNormalization computes in float32 and rounds before it multiplies with the weight, as transformers does.
    2. With a residual, the sum is an Add under the name of the op's output `sum`; without one there is none.
       TensorRT fuses the two.
    """

    name = "lower_norms"

    def apply(self, network: Network) -> bool:
        norms = [node for node in network.graph if is_op(node, rms_norm)]
        for norm in norms:
            _lower(network.graph, norm)
        return bool(norms)


def _lower(graph: ir.Graph, norm: ir.Node) -> None:
    x, weight = required_input(norm, 0), required_input(norm, 1)
    residual = input_at(norm, 2)
    nodes = []
    old = list(norm.outputs)
    new = [ir.Value(name=value.name, shape=value.shape, type=value.type) for value in old]
    if residual is not None:
        # 2.
        nodes.append(builtin_node("Add", [residual, x], new[1], str(new[1].name)))
        x = new[1]
    # 1.
    epsilon = norm.attributes["epsilon"].as_float()
    nodes.append(builtin_node("RMSNormalization", [x, weight], new[0], str(norm.name), axis=-1, epsilon=epsilon))
    graph.insert_before(norm, nodes)
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    graph.remove(norm, safe=True)
