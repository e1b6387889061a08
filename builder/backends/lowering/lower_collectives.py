"""AllReduce, AllGather, Send and Receive become nodes that have what the ops on a device need."""

import numpy as np
import onnx_ir as ir

from precast.builder.backends.lowering.lower_op import constant_node, like, replace_node
from precast.builder.network.network import Network
from precast.builder.network.nodes import Op, builtin_node, is_op, required_input
from precast.builder.passes.base import Pass
from precast.builder.plan import BuildPlan
from precast.plugins.all_gather import schema as all_gather
from precast.plugins.all_reduce import schema as all_reduce
from precast.plugins.receive import schema as receive
from precast.plugins.send import schema as send
from precast.plugins.tensorrt import PLUGIN_NAMESPACE

_OPS: tuple[Op, ...] = (all_reduce, all_gather, send, receive)


class LowerCollectives(Pass):
    """Give each collective what the op on a device has.

    1. Activations are of the build's dtype, which the attribute `dtype` says. `plugin_namespace` and `plugin_version`
       name a plugin of TensorRT, by which the parser finds it.
    2. AllGather gives every rank the rows: each chooses tokens for itself. The op's output has the ranks' columns
       one behind the other, [N, R, L]. Transpose and Reshape lay them side by side, and Slice drops the padding where
       there is any.
    """

    name = "lower_collectives"

    def __init__(self, plan: BuildPlan, *, is_plugin: bool) -> None:
        self._dtype, self._is_plugin = plan.dtype, is_plugin

    def apply(self, network: Network) -> bool:
        nodes = [(node, op) for node in network.graph for op in _OPS if is_op(node, op)]
        for node, op in nodes:
            if op is all_gather:
                self._lower_all_gather(network, node)
            else:
                output = like(node.outputs[0])
                replace_node(network.graph, node, [self._on_device(node, op, output)], [output])
        return bool(nodes)

    def _on_device(self, node: ir.Node, op: Op, output: ir.Value, **changes: int) -> ir.Node:
        # 1.
        values = {name: attribute.value for name, attribute in node.attributes.items()} | changes
        values["dtype"] = self._dtype
        if self._is_plugin:
            values |= {"plugin_namespace": PLUGIN_NAMESPACE, "plugin_version": str(op.VERSION)}
        return ir.Node(
            op.DOMAIN,
            op.NAME,
            [required_input(node, 0)],
            ir.convenience.convert_attributes(values),
            outputs=[output],
            version=op.VERSION,
            name=str(node.name),
        )

    def _lower_all_gather(self, network: Network, node: ir.Node) -> None:
        # 2.
        num_ranks, num_features = (node.attributes[name].as_int() for name in ("num_ranks", "num_features"))
        x, name = required_input(node, 0), str(node.name)
        assert x.shape is not None  # [R, L], of the emitter
        rows, columns = x.shape.dims[0], int(str(x.shape.dims[1]))
        width = num_ranks * columns
        output = like(node.outputs[0])

        def value(part: str, *shape: int | str | ir.SymbolicDim) -> ir.Value:
            return ir.Value(name=f"{name}.{part}", shape=ir.Shape(shape), type=output.type)

        by_rank, by_row = value("by_rank", num_ranks, rows, columns), value("by_row", rows, num_ranks, columns)
        is_padded = num_features < width
        wide = value("padded", rows, width) if is_padded else output
        shape = constant_node(f"{name}.shape", np.array([0, width], np.int64))
        nodes = [
            self._on_device(node, all_gather, by_rank, root=all_gather.EVERY_RANK),
            ir.Node(
                "",
                "Transpose",
                [by_rank],
                ir.convenience.convert_attributes({"perm": [1, 0, 2]}),
                outputs=[by_row],
                name=str(by_row.name),
            ),
            shape,
            builtin_node("Reshape", [by_row, shape.outputs[0]], wide, f"{name}.side_by_side"),
        ]
        if is_padded:
            bounds = [
                constant_node(f"{name}.{part}", np.array([bound], np.int64))
                for part, bound in (("start", 0), ("end", num_features), ("axis", 1))
            ]
            inputs = [wide, *(bound.outputs[0] for bound in bounds)]
            nodes += [*bounds, builtin_node("Slice", inputs, output, f"{name}.vocabulary")]
        replace_node(network.graph, node, nodes, [output])
