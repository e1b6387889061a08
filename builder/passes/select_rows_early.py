"""Select the rows that need logits as early as the graph allows, not just before the head."""

from collections.abc import Container

import onnx_ir as ir

from precast.builder.network.inputs import LOGIT_ROWS, NUM_LOGIT_ROWS
from precast.builder.network.network import Network
from precast.builder.network.nodes import input_at, select_rows_node, selects_rows, with_rows
from precast.builder.passes.base import InvariantError, Pass

ROW_INPUTS = {
    ("", "Add"): (0, 1),
    ("ai.precast", "AllReduce"): (0,),
    ("ai.precast", "GatedActivation"): (0,),
    ("ai.precast", "Linear"): (0,),
    ("ai.precast", "RmsNorm"): (0, 2),
}
"""Ops whose output row t is a function of row t of these inputs alone, bit for bit (the numerics contract)."""


class SelectRowsEarly(Pass):
    """Move the Gather by `logit_rows` up to the last attention: no later row is computed in vain.

    A prompt's tokens are all needed as keys and values, but only its last one needs logits. After the last
    attention nothing mixes rows any more, so the rest of the last layer runs on the wanted rows only.

    1. A node that works row by row is *narrow* if every use of its outputs selects rows by `logit_rows` or is a
       narrow node; an output of the graph is not.
    2. Each input row of a narrow node that no narrow node makes is selected by one Gather, shared between uses.
    3. A Gather that reads a narrow node's output is dropped: the rows are selected already.
    """

    name = "select_rows_early"

    def requires(self, network: Network) -> None:
        if LOGIT_ROWS not in {value.name for value in network.graph.inputs}:
            raise InvariantError(f"the graph has no input {LOGIT_ROWS}")

    def apply(self, network: Network) -> bool:
        narrow = _narrow_nodes(network.graph)
        for node in narrow:
            _select_inputs(network.graph, node, narrow)
            _drop_gathers(network.graph, node)
        return bool(narrow)


def _narrow_nodes(graph: ir.Graph) -> dict[ir.Node, None]:
    """The narrow nodes, in graph order."""
    # 1. From the last node to the first: a node's readers are judged before it.
    narrow: dict[ir.Node, None] = {}
    for node in reversed(graph):
        uses = [(use.node, use.idx) for value in node.outputs for use in value.uses()]
        wanted = uses and all(selects_rows(reader) or _reads_row(reader, index, narrow) for reader, index in uses)
        is_output = any(value.is_graph_output() for value in node.outputs)
        if (node.domain, node.op_type) in ROW_INPUTS and wanted and not is_output:
            narrow[node] = None
    return dict.fromkeys(reversed(narrow))


def _reads_row(reader: ir.Node, index: int, narrow: Container[ir.Node]) -> bool:
    return reader in narrow and index in ROW_INPUTS[reader.domain, reader.op_type]


def _select_inputs(graph: ir.Graph, node: ir.Node, narrow: Container[ir.Node]) -> None:
    # 2.
    for index in ROW_INPUTS[node.domain, node.op_type]:
        value = input_at(node, index)
        if value is not None and value.producer() not in narrow and not selects_rows(value.producer()):
            node.replace_input_with(index, _selection(graph, value, node))


def _selection(graph: ir.Graph, value: ir.Value, reader: ir.Node) -> ir.Value:
    """The wanted rows of `value`: the output of a Gather, made before `reader` if there is none yet."""
    for use in value.uses():
        if selects_rows(use.node):
            return use.node.outputs[0]
    rows = next(graph_input for graph_input in graph.inputs if graph_input.name == LOGIT_ROWS)
    gather = select_rows_node(value, rows)
    graph.insert_before(reader, gather)
    return gather.outputs[0]


def _drop_gathers(graph: ir.Graph, node: ir.Node) -> None:
    for value in node.outputs:
        value.shape = with_rows(value.shape, NUM_LOGIT_ROWS)
        # 3.
        for use in list(value.uses()):
            if selects_rows(use.node):
                ir.convenience.replace_all_uses_with(use.node.outputs[0], value)
                graph.remove(use.node, safe=True)
