"""Embedding becomes Gather."""

import onnx_ir as ir

from precast.builder.backends.tensorrt.lowering.plain_weights import plain_matrix
from precast.builder.network.network import Network
from precast.builder.network.nodes import builtin_node, is_op, required_input
from precast.builder.passes.base import Pass
from precast.builder.plan import BuildPlan
from precast.plugins.embedding import schema as embedding


class LowerEmbeddings(Pass):
    """Replace Embedding(token_ids, table) by Gather(table, token_ids).

    1. The table is a plain tensor of the build's dtype, which a tied head reads too.
    2. Slices of a vocabulary, which several ranks have, are not lowered.
    """

    name = "lower_embeddings"

    def __init__(self, plan: BuildPlan) -> None:
        self._dtype = plan.dtype

    def apply(self, network: Network) -> bool:
        embeddings = [node for node in network.graph if is_op(node, embedding)]
        for node in embeddings:
            self._lower(network, node)
        return bool(embeddings)

    def _lower(self, network: Network, node: ir.Node) -> None:
        # 2.
        if node.attributes["is_slice"].as_int():
            raise ValueError(f"node {node.name} reads a slice of the vocabulary, which is not lowered")
        # 1.
        table = plain_matrix(network, required_input(node, 1), self._dtype)
        (old,) = node.outputs
        new = ir.Value(name=old.name, shape=old.shape, type=old.type)
        gather = builtin_node("Gather", [table, required_input(node, 0)], new, str(node.name), axis=0)
        network.graph.insert_before(node, gather)
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        network.graph.remove(node, safe=True)
