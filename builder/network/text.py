"""A network as text: one line a node and one an initialiser, for people, graph dumps and exact tests.

inputs:
  token_ids int32 [num_tokens]
nodes:
  layers.0.attention.o: [num_tokens, 64] = Linear(layers.0.attention, layers.0.attention.o.weight) {...}
initialisers:
  layers.0.attention.o.weight x16k1.f32/1 [64, 64] <- layers.0.attention.o.weight
outputs:
  logits float32 [num_logit_rows, 256]
"""

import onnx_ir as ir

from precast.builder.network.network import Network


def network_text(network: Network) -> str:
    """The whole network, in a form that two equal networks share and two different ones do not."""
    sections = {
        "inputs": [_describe(value) for value in network.graph.inputs],
        "nodes": [node_text(node) for node in network.graph],
        "initialisers": [weight_text(network, name) for name in network.weights],
        "outputs": [_describe(value) for value in network.graph.outputs],
    }
    return "".join(f"{title}:\n" + "".join(f"  {line}\n" for line in lines) for title, lines in sections.items())


def node_text(node: ir.Node) -> str:
    outputs = ", ".join(_output(node, value) for value in node.outputs)
    inputs = ", ".join("-" if value is None else str(value.name) for value in node.inputs)
    attributes = ", ".join(f"{name}={attribute.value}" for name, attribute in node.attributes.items())
    return f"{node.name}: {outputs} = {node.op_type}({inputs})" + (f" {{{attributes}}}" if attributes else "")


def weight_text(network: Network, name: str) -> str:
    recipe = network.weights[name]
    return f"{name} {recipe.layout} {list(recipe.shape)} <- {' | '.join(map(str, recipe.sources))}"


def _output(node: ir.Node, value: ir.Value) -> str:
    """The shape, after the value's name where that is not the node's, and its dtype where that is not float32."""
    name = "" if value.name == node.name else f"{value.name} "
    dtype = "" if value.dtype in (None, ir.DataType.FLOAT) else f"{value.dtype.numpy().name} "
    return f"{name}{dtype}{_shape(value)}"


def _describe(value: ir.Value) -> str:
    dtype = "?" if value.dtype is None else value.dtype.numpy().name
    return f"{value.name} {dtype} {_shape(value)}"


def _shape(value: ir.Value) -> str:
    return "?" if value.shape is None else f"[{', '.join(str(dim) for dim in value.shape)}]"
