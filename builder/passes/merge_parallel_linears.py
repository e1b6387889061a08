"""Merge Linears that read one value and whose outputs are concatenated: q, k, v; gate, up."""

from collections.abc import Sequence

import onnx_ir as ir

from precast.builder.network.network import Network
from precast.builder.network.nodes import input_at, is_builtin, is_op, precast_node, required_input
from precast.builder.passes.base import Pass
from precast.builder.weights import Recipe, WeightRecipe, Zeros, concatenate
from precast.checkpoints.weights_index import PLAIN_LAYOUT
from precast.plugins.linear import schema as linear


class MergeParallelLinears(Pass):
    """Replace Concat(Linear(x), Linear(x), ...) by one Linear: one pass over x, one kernel launch.

    1. A Concat along the features whose inputs are all outputs of Linears that read the same x with weights of
       the same layout becomes one Linear, named as the Concat. Its weight is theirs, concatenated in the
       Concat's order.
    2. Biases are concatenated likewise; zeros stand in where only some of the Linears have one.
    3. A Linear whose output is read elsewhere too, or whose weight or bias is shared with another node, is not
       merged, and so its Concat stays: it would be computed, or stored, twice.
    """

    name = "merge_parallel_linears"

    def apply(self, network: Network) -> bool:
        mergeable = [node for node in network.graph if _parallel_linears(network, node)]
        for concat in mergeable:
            _merge(network, concat, _parallel_linears(network, concat))
        return bool(mergeable)


def _parallel_linears(network: Network, concat: ir.Node) -> Sequence[ir.Node]:
    """The Linears that a Concat joins, if rules 1 and 3 let them merge; else none."""
    if not is_builtin(concat, "Concat"):
        return ()
    # 1.
    linears = [value.producer() for value in concat.inputs if value is not None]
    parallel = [node for node in linears if node is not None and is_op(node, linear)]
    if len(parallel) != len(concat.inputs) or len(set(parallel)) != len(parallel):
        return ()
    if concat.attributes["axis"].as_int() not in {-1, 1}:
        return ()
    if len({required_input(node, 0) for node in parallel}) != 1:
        return ()
    if len({node.attributes["layout"].as_string() for node in parallel}) != 1:
        return ()
    # 3.
    for node in parallel:
        owned = [node.outputs[0], required_input(node, 1), input_at(node, 2)]
        if any(len(value.uses()) != 1 or value.is_graph_output() for value in owned if value is not None):
            return ()
        if any(value.name not in network.weights for value in owned[1:] if value is not None):
            return ()
    return parallel


def _merge(network: Network, concat: ir.Node, linears: Sequence[ir.Node]) -> None:
    # 1.
    weight = concatenate([_recipe(network, node, 1) for node in linears])
    out_features, in_features = weight.shape
    attributes = linear.LinearAttributes(in_features=in_features, out_features=out_features, layout=weight.layout)
    inputs = [required_input(linears[0], 0), network.add_weight(f"{concat.name}.weight", weight)]
    # 2.
    if any(input_at(node, 2) is not None for node in linears):
        bias = concatenate([_bias_or_zeros(network, node) for node in linears])
        inputs.append(network.add_weight(f"{concat.name}.bias", bias))
    (old,) = concat.outputs
    new = ir.Value(name=old.name, shape=old.shape, type=old.type)
    merged = precast_node(linear, attributes, inputs, [new], str(concat.name))
    network.graph.insert_before(concat, merged)
    ir.convenience.replace_all_uses_with(old, new)
    unread = [str(value.name) for node in linears for value in node.inputs[1:] if value is not None]
    network.graph.remove([concat, *linears], safe=True)
    for name in unread:
        network.remove_weight(name)


def _recipe(network: Network, node: ir.Node, index: int) -> Recipe:
    return network.weights[str(required_input(node, index).name)]


def _bias_or_zeros(network: Network, node: ir.Node) -> Recipe:
    if input_at(node, 2) is not None:
        return _recipe(network, node, 2)
    return WeightRecipe(PLAIN_LAYOUT, (Zeros((node.attributes["out_features"].as_int(),)),))
