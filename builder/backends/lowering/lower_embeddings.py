"""Embedding becomes Gather."""

import numpy as np
import onnx_ir as ir

from precast.builder.backends.lowering.lower_op import LowerOp, constant_node, like, replace_node
from precast.builder.backends.lowering.plain_weights import plain_matrix
from precast.builder.network.network import Network
from precast.builder.network.nodes import builtin_node, required_input
from precast.builder.plan import BuildPlan
from precast.checkpoints.tensor_info import NUMPY_DTYPES
from precast.plugins.embedding import schema as embedding


class LowerEmbeddings(LowerOp):
    """Replace Embedding(token_ids, table) by Gather(table, token_ids).

    1. The table is a plain tensor of the build's dtype, which a tied head reads too.
    2. Of a slice of the vocabulary, which several ranks have, ids become rows of the slice; those outside take its
       first or last row, which a Where replaces by zeros.
    """

    name = "lower_embeddings"
    op = embedding

    def __init__(self, plan: BuildPlan) -> None:
        self._dtype = plan.dtype

    def lower(self, network: Network, node: ir.Node) -> None:
        # 1.
        table = plain_matrix(network, required_input(node, 1), self._dtype)
        token_ids, rows = required_input(node, 0), like(node.outputs[0])
        if node.attributes["is_slice"].as_int():
            nodes = self._slice(node, token_ids, table, rows)
        else:
            nodes = [builtin_node("Gather", [table, token_ids], rows, str(node.name), axis=0)]
        replace_node(network.graph, node, nodes, [rows])

    def _slice(self, node: ir.Node, token_ids: ir.Value, table: ir.Value, rows: ir.Value) -> list[ir.Node]:
        # 2.
        name, nodes = str(node.name), list[ir.Node]()
        assert rows.shape is not None  # of the emitter
        ids, one_column = token_ids.shape, ir.Shape((rows.shape.dims[0], 1))

        def constant(part: str, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> ir.Value:
            nodes.append(constant_node(f"{name}.{part}", array))
            return nodes[-1].outputs[0]

        def emit(
            op_type: str,
            inputs: list[ir.Value],
            part: str,
            shape: ir.Shape | None,
            dtype: ir.DataType,
            **attributes: float,
        ) -> ir.Value:
            output = ir.Value(name=f"{name}.{part}", shape=shape, type=ir.TensorType(dtype))
            nodes.append(builtin_node(op_type, inputs, output, str(output.name), **attributes))
            return output

        half, int32, boolean = rows.dtype or ir.DataType.UNDEFINED, ir.DataType.INT32, ir.DataType.BOOL
        start, num_rows = (node.attributes[attribute].as_int() for attribute in ("row_start", "rows"))
        first, last = (constant(part, np.array(row, np.int32)) for part, row in (("first", 0), ("last", num_rows - 1)))
        wanted = emit("Sub", [token_ids, constant("row_start", np.array(start, np.int32))], "wanted", ids, int32)
        present = emit("Min", [emit("Max", [wanted, first], "not_before", ids, int32), last], "present", ids, int32)
        is_here = emit("Equal", [wanted, present], "is_here", ids, boolean)
        axis = constant("axis", np.array([1], np.int64))
        column = emit("Unsqueeze", [is_here, axis], "is_here.column", one_column, boolean)
        found = emit("Gather", [table, present], "found", rows.shape, half, axis=0)
        zero = constant("zero", np.zeros((1, 1), NUMPY_DTYPES[self._dtype]))
        return [*nodes, builtin_node("Where", [column, found, zero], rows, name)]
