"""What the passes have in common that replace every node of one op."""

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from precast.builder.network.network import Network
from precast.builder.network.nodes import Op, is_op
from precast.builder.passes.base import Pass


class LowerOp(Pass):
    """Replaces the nodes of one of our ops."""

    op: Op

    def apply(self, network: Network) -> bool:
        nodes = [node for node in network.graph if is_op(node, self.op)]
        for node in nodes:
            self.lower(network, node)
        return bool(nodes)

    @abstractmethod
    def lower(self, network: Network, node: ir.Node) -> None:
        """Replace one node."""


def like(value: ir.Value) -> ir.Value:
    """A new value with the name, shape and type of one that it is to replace."""
    return ir.Value(name=value.name, shape=value.shape, type=value.type)


def replace_node(graph: ir.Graph, node: ir.Node, replacements: Sequence[ir.Node], outputs: Sequence[ir.Value]) -> None:
    """Put nodes in the place of one, whose outputs `outputs` take over one by one."""
    graph.insert_before(node, replacements)
    ir.convenience.replace_all_uses_with(list(node.outputs), list(outputs), replace_graph_outputs=True)
    graph.remove(node, safe=True)


def constant_node(name: str, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> ir.Node:
    """A constant in the graph itself: an initialiser would be one of the weights, which others may replace."""
    tensor = ir.tensor(array, name=name)
    output = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))
    return ir.Node("", "Constant", [], [ir.AttrTensor("value", tensor)], outputs=[output], name=name)
