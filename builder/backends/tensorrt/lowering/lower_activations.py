"""GatedActivation becomes Split, Sigmoid and two products."""

import onnx_ir as ir

from precast.builder.backends.lowering.lower_op import LowerOp, like, replace_node
from precast.builder.network.network import Network
from precast.builder.network.nodes import required_input
from precast.plugins.gated_activation import schema as gated_activation


class LowerActivations(LowerOp):
    """Replace GatedActivation(gate_up) by gate * sigmoid(gate) * up.

    1. Everything is computed in float32 and rounded once, as the op says: TensorRT fuses the whole into one kernel, so
       float32 costs nothing.
    2. The only activation is silu.
    """

    name = "lower_activations"
    op = gated_activation

    def lower(self, network: Network, node: ir.Node) -> None:
        # 2.
        activation = node.attributes["activation"].as_string()
        if activation != "silu":
            raise ValueError(f"node {node.name} has the activation {activation}, which is not lowered")
        (old,) = node.outputs
        half, wide = ir.TensorType(old.dtype or ir.DataType.UNDEFINED), ir.TensorType(ir.DataType.FLOAT)
        nodes: list[ir.Node] = []

        def value(part: str, value_type: ir.TensorType = wide) -> ir.Value:
            return ir.Value(name=f"{node.name}.{part}", shape=old.shape, type=value_type)

        def emit(op_type: str, inputs: list[ir.Value], *outputs: ir.Value, **attributes: int) -> ir.Value:
            converted = ir.convenience.convert_attributes(attributes)
            nodes.append(ir.Node("", op_type, inputs, converted, outputs=outputs, name=str(outputs[0].name)))
            return outputs[0]

        gate, up = value("gate", half), value("up", half)
        emit("Split", [required_input(node, 0)], gate, up, axis=-1, num_outputs=2)
        # 1.
        gate = emit("Cast", [gate], value("gate.float"), to=ir.DataType.FLOAT.value)
        up = emit("Cast", [up], value("up.float"), to=ir.DataType.FLOAT.value)
        silu = emit("Mul", [gate, emit("Sigmoid", [gate], value("sigmoid"))], value("silu"))
        product = emit("Mul", [silu, up], value("product"))
        rounded = emit("Cast", [product], like(old), to=int(half.dtype.value))
        replace_node(network.graph, node, nodes, [rounded])
