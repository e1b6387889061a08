"""The emitter: what every block appends nodes, weights and KV pools with."""

from collections.abc import Sequence
from itertools import count

import onnx_ir as ir

from precast.builder.network.inputs import StepInputs, block_tables_name, kv_pool, step_inputs
from precast.builder.network.network import Network
from precast.builder.network.nodes import Op, OpAttributes, builtin_node, precast_node, select_rows_node
from precast.builder.plan import BuildPlan
from precast.builder.weights import CheckpointTensor, RopeFrequencies, WeightRecipe
from precast.checkpoints.engine_kv import KvCacheSpec, KvGroupSpec
from precast.checkpoints.model_config import RopeConfig
from precast.checkpoints.weights_index import PLAIN_LAYOUT
from precast.plugins.domain import DOMAIN
from precast.plugins.linear import schema as linear
from precast.version import __version__

IR_VERSION = 10
OPSET = 20
"""What ONNX Runtime from 1.23 on runs; newer ones are refused by releases that are in use."""


class Emitter:
    """Appends to a network. A value has the name of its node, which says where in the model it is."""

    def __init__(self, plan: BuildPlan, windows: Sequence[int | None], tensor_parallel_size: int) -> None:
        """`windows` are the distinct attention windows of all ranks' layers, sorted as KvGroupSpecs are."""
        self.plan = plan
        self.tensor_parallel_size = tensor_parallel_size
        self.inputs: StepInputs = step_inputs(len(windows))
        groups = tuple(KvGroupSpec(block_tables_name(index), window) for index, window in enumerate(windows))
        opsets = {"": OPSET, DOMAIN: 1}
        graph = ir.Graph(inputs=self.inputs.values(), outputs=[], nodes=[], opset_imports=opsets, name="precast")
        model = ir.Model(graph, ir_version=IR_VERSION, producer_name="precast", producer_version=__version__)
        self.network = Network(model, weights={}, kv_groups=groups, kv_caches=[])

    def op(
        self, op: Op, attributes: OpAttributes, inputs: Sequence[ir.Value | None], name: str, features: int
    ) -> ir.Value:
        """One of our ops; its output is float32 [rows of the first input, features]."""
        output = _rows_like(inputs[0], name, features)
        self.network.graph.append(precast_node(op, attributes, inputs, [output], name))
        return output

    def builtin(
        self, op_type: str, inputs: Sequence[ir.Value], name: str, features: int, **attributes: int
    ) -> ir.Value:
        """An operator of ONNX that works row by row; its output is float32 [rows of the first input, features]."""
        output = _rows_like(inputs[0], name, features)
        self.network.graph.append(builtin_node(op_type, inputs, output, name, **attributes))
        return output

    def select_rows(self, x: ir.Value) -> ir.Value:
        """The rows of x that want logits."""
        node = select_rows_node(x, self.inputs.logit_rows)
        self.network.graph.append(node)
        return node.outputs[0]

    def linear(
        self, x: ir.Value, name: str, out_features: int, *, bias: bool, weight: ir.Value | None = None
    ) -> ir.Value:
        """A matrix product with the checkpoint's tensors `name`.weight, unless `weight` is given, and `name`.bias."""
        in_features = num_features(x)
        attributes = linear.LinearAttributes(in_features, out_features, self.plan.weight_layout)
        if weight is None:
            weight = self.packed_weight(f"{name}.weight", (out_features, in_features))
        bias_value = self.plain_weight(f"{name}.bias", (out_features,)) if bias else None
        return self.op(linear, attributes, [x, weight, bias_value], name, out_features)

    def packed_weight(self, name: str, shape: tuple[int, int]) -> ir.Value:
        """The checkpoint's matrix `name` in the plan's layout."""
        return self.network.add_weight(name, WeightRecipe(self.plan.weight_layout, (CheckpointTensor(name, shape),)))

    def plain_weight(self, name: str, shape: tuple[int, ...]) -> ir.Value:
        """The checkpoint's tensor `name` in float32."""
        return self.network.add_weight(name, WeightRecipe(PLAIN_LAYOUT, (CheckpointTensor(name, shape),)))

    def rope_frequencies(self, rope: RopeConfig) -> ir.Value:
        """The rows of the rope's table, inv_freq.0, inv_freq.1, ...; layers with the same rope share them."""
        recipe = WeightRecipe(PLAIN_LAYOUT, (RopeFrequencies(rope, self.plan.max_seq_len),))
        numbered = (f"inv_freq.{number}" for number in count())
        for candidate in numbered:
            if candidate not in self.network.weights:
                return self.network.add_weight(candidate, recipe)
            if self.network.weights[candidate] == recipe:
                break
        return self.network.graph.initializers[candidate]

    def kv_cache(self, layout: str, block_bytes: int, window: int | None) -> tuple[ir.Value, ir.Value]:
        """The block tables and the pool, a new graph input, of the next attention layer."""
        group = [spec.window for spec in self.network.kv_groups].index(window)
        pool = kv_pool(f"kv.{len(self.network.kv_caches)}", block_bytes)
        self.network.graph.inputs.append(pool)
        self.network.kv_caches.append(KvCacheSpec(str(pool.name), layout, block_bytes, group))
        return self.inputs.block_tables[group], pool

    def finish(self, output: ir.Value) -> Network:
        """Give the graph its output, and hand the network over."""
        self.network.graph.outputs.append(output)
        self.network.check_integrity()
        return self.network


def num_features(x: ir.Value) -> int:
    """The static size of a value's last axis."""
    size = None if x.shape is None else x.shape[-1]
    if not isinstance(size, int):
        raise ValueError(f"value {x.name} of shape {x.shape} has no static number of features")
    return size


def _rows_like(x: ir.Value | None, name: str, features: int) -> ir.Value:
    if x is None or x.shape is None:
        raise ValueError(f"node {name} needs a first input of known shape")
    return ir.Value(name=name, shape=ir.Shape((x.shape.dims[0], features)), type=ir.TensorType(ir.DataType.FLOAT))
