"""Fuse a residual addition into the normalisation that follows it."""

import onnx_ir as ir

from precast.builder.network.network import Network
from precast.builder.network.nodes import input_at, is_builtin, is_op, precast_node, required_input
from precast.builder.passes.base import Pass
from precast.plugins.rms_norm import schema as rms_norm


class FuseResidualNorm(Pass):
    """Replace s = Add(a, b), y = RmsNorm(s) by one RmsNorm with a residual: the row is read once.

    1. The fused node reads b as x and a, the stream that the Add continues, as residual; it gives y under the
       norm's name and s, as its output `sum`, under the Add's. All other uses of s read that.
    2. Of several norms that read one Add only the first is fused; the others go on reading s.
    3. An Add that broadcasts, and one that is an output of the graph, stays.
    """

    name = "fuse_residual_norm"

    def apply(self, network: Network) -> bool:
        adds = [(node, _norm_of(node)) for node in network.graph if is_builtin(node, "Add")]
        fusible = [(add, norm) for add, norm in adds if norm is not None]
        for add, norm in fusible:
            _fuse(network, add, norm)
        return bool(fusible)


def _norm_of(add: ir.Node) -> ir.Node | None:
    """The norm that the Add is fused into, if rules 2 and 3 allow one."""
    (total,) = add.outputs
    # 3.
    if total.is_graph_output() or required_input(add, 0).shape != required_input(add, 1).shape:
        return None
    # 2.
    for use in total.uses():
        if is_op(use.node, rms_norm) and use.idx == 0 and input_at(use.node, 2) is None:
            return use.node
    return None


def _fuse(network: Network, add: ir.Node, norm: ir.Node) -> None:
    # 1. At the Add's place, so that it comes before every reader of either output. A norm's weight is an
    # initialiser, so it is there already.
    residual, x = required_input(add, 0), required_input(add, 1)
    attributes = rms_norm.RmsNormAttributes(epsilon=norm.attributes["epsilon"].as_float())
    old_values = [norm.outputs[0], add.outputs[0]]
    new_values = [ir.Value(name=old.name, shape=old.shape, type=old.type) for old in old_values]
    inputs = [x, required_input(norm, 1), residual]
    fused = precast_node(rms_norm, attributes, inputs, new_values, str(norm.name))
    network.graph.insert_before(add, fused)
    ir.convenience.replace_all_uses_with(old_values, new_values)
    network.graph.remove([norm, add], safe=True)
