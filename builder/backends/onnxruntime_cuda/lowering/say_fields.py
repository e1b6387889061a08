"""RmsNorm and GatedActivation stay our ops, and say of themselves what their kernels are specialised by."""

import onnx_ir as ir

from precast.builder.backends.lowering.lower_op import like, replace_node
from precast.builder.network.network import Network
from precast.builder.network.nodes import input_at, is_op
from precast.builder.passes.base import Pass
from precast.builder.plan import BuildPlan
from precast.plugins.gated_activation import schema as gated_activation
from precast.plugins.rms_norm import schema as rms_norm


class SayFields(Pass):
    """Give RmsNorm and GatedActivation the attributes that they have on a device.

    1. `dtype` of what they read and write, and `num_features`, how wide the normalised or the resulting rows are.
    2. RmsNorm says whether it has a residual, and so the output `sum`.
    """

    name = "say_fields"

    def __init__(self, plan: BuildPlan) -> None:
        self._dtype = plan.dtype

    def apply(self, network: Network) -> bool:
        found = [node for node in network.graph if is_op(node, rms_norm) or is_op(node, gated_activation)]
        for node in found:
            self._rewrite(network, node)
        return bool(found)

    def _rewrite(self, network: Network, node: ir.Node) -> None:
        shape = node.outputs[0].shape
        assert shape is not None  # of the emitter
        # 1.
        values = {name: attribute.value for name, attribute in node.attributes.items()}
        values |= {"dtype": self._dtype, "num_features": int(str(shape.dims[1]))}
        outputs = [like(value) for value in node.outputs]
        if is_op(node, rms_norm):
            # 2.
            values["has_residual"] = int(input_at(node, 2) is not None)
        replacement = ir.Node(
            node.domain,
            node.op_type,
            [value for value in node.inputs if value is not None],
            ir.convenience.convert_attributes(values),
            outputs=outputs,
            version=node.version,
            name=str(node.name),
        )
        replace_node(network.graph, node, [replacement], outputs)
