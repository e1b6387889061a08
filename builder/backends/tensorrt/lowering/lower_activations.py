"""GatedActivation becomes Split, Sigmoid and two products."""

import onnx_ir as ir

from precast.builder.network.network import Network
from precast.builder.network.nodes import is_op, required_input
from precast.builder.passes.base import Pass
from precast.plugins.gated_activation import schema as gated_activation


class LowerActivations(Pass):
    """Replace GatedActivation(gate_up) by gate * sigmoid(gate) * up.

    1. Everything is computed in float32 and rounded once, as the op says: TensorRT fuses the whole into one kernel, so
       float32 costs nothing.
    2. The only activation is silu.
    """

    name = "lower_activations"

    def apply(self, network: Network) -> bool:
        activations = [node for node in network.graph if is_op(node, gated_activation)]
        for node in activations:
            _lower(network.graph, node)
        return bool(activations)


def _lower(graph: ir.Graph, node: ir.Node) -> None:
    # 2.
    activation = node.attributes["activation"].as_string()
    if activation != "silu":
        raise ValueError(f"node {node.name} has the activation {activation}, which is not lowered")
    gate_up, name = required_input(node, 0), str(node.name)
    (old,) = node.outputs
    half, wide = ir.TensorType(old.dtype or ir.DataType.UNDEFINED), ir.TensorType(ir.DataType.FLOAT)

    def value(part: str, value_type: ir.TensorType) -> ir.Value:
        return ir.Value(name=f"{name}.{part}", shape=old.shape, type=value_type)

    def emit(op_type: str, inputs: list[ir.Value], outputs: list[ir.Value], **attributes: int) -> list[ir.Value]:
        converted = ir.convenience.convert_attributes(attributes)
        graph.insert_before(node, ir.Node("", op_type, inputs, converted, outputs=outputs, name=str(outputs[0].name)))
        return outputs

    gate, up = emit("Split", [gate_up], [value("gate", half), value("up", half)], axis=-1, num_outputs=2)
    # 1.
    to = ir.DataType.FLOAT.value
    (gate,) = emit("Cast", [gate], [value("gate.float", wide)], to=to)
    (up,) = emit("Cast", [up], [value("up.float", wide)], to=to)
    (sigmoid,) = emit("Sigmoid", [gate], [value("sigmoid", wide)])
    (silu,) = emit("Mul", [gate, sigmoid], [value("silu", wide)])
    (product,) = emit("Mul", [silu, up], [value("product", wide)])
    new = ir.Value(name=old.name, shape=old.shape, type=old.type)
    emit("Cast", [product], [new], to=int(half.dtype.value))
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
