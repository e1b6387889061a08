"""PagedAttention becomes a node that has what the op on a device needs."""

from dataclasses import fields

import onnx_ir as ir

from precast.builder.backends.lowering.lower_op import LowerOp, like, replace_node
from precast.builder.network.network import DTYPES, Network
from precast.builder.network.nodes import input_at, required_input
from precast.builder.plan import BuildPlan
from precast.plugins.paged_attention import schema as paged_attention
from precast.plugins.tensorrt import PLUGIN_NAMESPACE

POOL = 4
"""PagedAttention's input that is written in place."""
_INV_FREQ, _Q_NORM, _SINKS = 5, 6, 8


class LowerAttention(LowerOp):
    """Give each PagedAttention what the op on a device has.

    1. The pool is of the build's dtype, [num_blocks, block_bytes / 2]. It is written in place.
    2. Absent inputs are left out: attributes say which there are.
    3. As a plugin of TensorRT it has the attributes `plugin_namespace` and `plugin_version`, by which the parser finds
       it, and the graph has a new output `kv.<i>.out`, which TensorRT lets the plugin give the pool's memory.
    """

    name = "lower_attention"
    op = paged_attention

    def __init__(self, plan: BuildPlan, *, is_plugin: bool) -> None:
        self._dtype, self._is_plugin = plan.dtype, is_plugin

    def lower(self, network: Network, node: ir.Node) -> None:
        # 1.
        pool = required_input(node, POOL)
        assert pool.shape is not None  # a graph input of the emitter's
        num_blocks, block_bytes = pool.shape.dims
        pool.shape = ir.Shape((num_blocks, int(str(block_bytes)) // 2))
        pool.dtype = DTYPES[self._dtype]
        outputs = [like(node.outputs[0])]
        # 2.
        values = {
            field.name: node.attributes[field.name].value for field in fields(paged_attention.PagedAttentionAttributes)
        }
        num_frequencies, pairs = _table_shape(input_at(node, _INV_FREQ))
        values |= {
            "rotary_dim": 2 * pairs,
            "num_frequencies": num_frequencies,
            "has_qk_norm": int(input_at(node, _Q_NORM) is not None),
            "has_sinks": int(input_at(node, _SINKS) is not None),
        }
        # 3.
        if self._is_plugin:
            values |= {"plugin_namespace": PLUGIN_NAMESPACE, "plugin_version": str(paged_attention.VERSION)}
            written = ir.Value(name=f"{pool.name}.out", shape=pool.shape, type=ir.TensorType(DTYPES[self._dtype]))
            outputs.append(written)
            network.graph.outputs.append(written)
        lowered = ir.Node(
            paged_attention.DOMAIN,
            paged_attention.NAME,
            [value for value in node.inputs if value is not None],
            ir.convenience.convert_attributes(values),
            outputs=outputs,
            version=paged_attention.VERSION,
            name=str(node.name),
        )
        replace_node(network.graph, node, [lowered], outputs[:1])


def _table_shape(inv_freq: ir.Value | None) -> tuple[int, int]:
    """Rows and columns of the rotary frequencies, 0 where there are none."""
    if inv_freq is None or inv_freq.shape is None:
        return 0, 0
    rows, pairs = inv_freq.shape.numpy()
    return rows, pairs
