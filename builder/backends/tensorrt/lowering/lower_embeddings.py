"""Embedding becomes Gather."""

import onnx_ir as ir

from precast.builder.backends.tensorrt.lowering.lower_op import LowerOp, like, replace_node
from precast.builder.backends.tensorrt.lowering.plain_weights import plain_matrix
from precast.builder.network.network import Network
from precast.builder.network.nodes import builtin_node, required_input
from precast.builder.plan import BuildPlan
from precast.plugins.embedding import schema as embedding


class LowerEmbeddings(LowerOp):
    """Replace Embedding(token_ids, table) by Gather(table, token_ids).

    1. The table is a plain tensor of the build's dtype, which a tied head reads too.
    2. Slices of a vocabulary, which several ranks have, are not lowered.
    """

    name = "lower_embeddings"
    op = embedding

    def __init__(self, plan: BuildPlan) -> None:
        self._dtype = plan.dtype

    def lower(self, network: Network, node: ir.Node) -> None:
        # 2.
        if node.attributes["is_slice"].as_int():
            raise ValueError(f"node {node.name} reads a slice of the vocabulary, which is not lowered")
        # 1.
        table = plain_matrix(network, required_input(node, 1), self._dtype)
        rows = like(node.outputs[0])
        gather = builtin_node("Gather", [table, required_input(node, 0)], rows, str(node.name), axis=0)
        replace_node(network.graph, node, [gather], [rows])
