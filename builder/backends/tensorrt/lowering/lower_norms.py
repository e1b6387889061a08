"""RmsNorm becomes ONNX's RMSNormalization."""

import onnx_ir as ir

from precast.builder.backends.lowering.lower_op import LowerOp, like, replace_node
from precast.builder.network.network import Network
from precast.builder.network.nodes import builtin_node, input_at, required_input
from precast.plugins.rms_norm import schema as rms_norm


class LowerNorms(LowerOp):
    """Replace RmsNorm(x, weight[, residual]) by RMSNormalization(Add(residual, x), weight).

    1. RMSNormalization computes in float32 and rounds before it multiplies with the weight, as transformers does.
    2. With a residual, the sum is an Add under the name of the op's output `sum`; without one there is none.
       TensorRT fuses the two.
    """

    name = "lower_norms"
    op = rms_norm

    def lower(self, network: Network, node: ir.Node) -> None:
        x, weight = required_input(node, 0), required_input(node, 1)
        residual = input_at(node, 2)
        nodes = []
        outputs = [like(value) for value in node.outputs]
        if residual is not None:
            # 2.
            nodes.append(builtin_node("Add", [residual, x], outputs[1], str(outputs[1].name)))
            x = outputs[1]
        # 1.
        epsilon = node.attributes["epsilon"].as_float()
        norm = builtin_node("RMSNormalization", [x, weight], outputs[0], str(node.name), axis=-1, epsilon=epsilon)
        replace_node(network.graph, node, [*nodes, norm], outputs)
