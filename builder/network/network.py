"""A network: the ONNX graph while it is emitted and rewritten, and the recipes of its weights."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from precast.builder.weights import Recipe
from precast.checkpoints.engine_kv import KvCacheSpec, KvGroupSpec

DTYPES = {
    "float32": ir.DataType.FLOAT,
    "bfloat16": ir.DataType.BFLOAT16,
    "float16": ir.DataType.FLOAT16,
    "uint8": ir.DataType.UINT8,
    "int8": ir.DataType.INT8,
    "int4": ir.DataType.INT4,
    "float8_e4m3fn": ir.DataType.FLOAT8E4M3FN,
    "float4_e2m1fn": ir.DataType.FLOAT4E2M1,
}
"""The dtypes of initialisers, by the names that recipes use."""


class IntegrityError(Exception):
    """A network contradicts itself; the message names the node or the initialiser."""


@dataclass(frozen=True)
class Network:
    """A graph whose initialisers carry no data, and the recipe of each.

    Blocks and passes change the members in place; `check_integrity` says whether they agree.

    Attributes:
        kv_groups: The layers' attention windows; the one without a window first, then ascending.
        kv_caches: The pools, one for each attention layer, in the order of their graph inputs.
    """

    model: ir.Model
    weights: dict[str, Recipe]
    kv_groups: tuple[KvGroupSpec, ...]
    kv_caches: list[KvCacheSpec]

    @property
    def graph(self) -> ir.Graph:
        return self.model.graph

    def add_weight(self, name: str, recipe: Recipe) -> ir.Value:
        """Add an initialiser and its recipe.

        Raises:
            IntegrityError: the name is taken.
        """
        if name in self.weights:
            raise IntegrityError(f"initialiser {name} exists already")
        tensor_type = ir.TensorType(DTYPES[recipe.graph_dtype])
        value = ir.Value(name=name, shape=ir.Shape(recipe.graph_shape), type=tensor_type)
        self.graph.initializers[name] = value
        self.weights[name] = recipe
        return value

    def remove_weight(self, name: str) -> None:
        """Remove an initialiser that no node uses, and its recipe."""
        del self.graph.initializers[name]
        del self.weights[name]

    def weights_in_execution_order(self) -> Iterator[tuple[str, Recipe]]:
        """Initialisers in the order in which the graph first reads them, which is their order in the file."""
        inputs = (value.name for node in self.graph for value in node.inputs if value is not None)
        for name in dict.fromkeys(inputs):
            if name is not None and name in self.weights:
                yield name, self.weights[name]

    def check_integrity(self) -> None:
        """Check that names are unique, values are defined before they are used, and weights match their recipes.

        Raises:
            IntegrityError: naming the first node or initialiser that is wrong.
        """
        self._check_weights()
        defined: dict[str, ir.Value] = {}
        for value in (*self.graph.inputs, *self.graph.initializers.values()):
            _define(defined, value, "the graph")
        node_names: set[str] = set()
        for node in self.graph:
            if not node.name or node.name in node_names:
                raise IntegrityError(f"node name {node.name!r} of {node.op_type} is empty or taken")
            node_names.add(node.name)
            _check_defined(defined, [value for value in node.inputs if value is not None], f"node {node.name}")
            for value in node.outputs:
                _define(defined, value, f"node {node.name}")
        _check_defined(defined, self.graph.outputs, "the graph's output")

    def _check_weights(self) -> None:
        initializers = self.graph.initializers
        if unmatched := sorted(set(initializers) ^ set(self.weights)):
            raise IntegrityError(f"initialiser without recipe, or recipe without initialiser: {', '.join(unmatched)}")
        for name, recipe in self.weights.items():
            value = initializers[name]
            if value.dtype != DTYPES[recipe.graph_dtype] or value.shape != ir.Shape(recipe.graph_shape):
                raise IntegrityError(
                    f"initialiser {name} is {value.dtype} {value.shape}, "
                    f"its recipe says {recipe.graph_dtype} {list(recipe.graph_shape)}"
                )


def _define(defined: dict[str, ir.Value], value: ir.Value, owner: str) -> None:
    if not value.name or value.name in defined:
        raise IntegrityError(f"value name {value.name!r} of {owner} is empty or taken")
    defined[value.name] = value


def _check_defined(defined: dict[str, ir.Value], values: Iterable[ir.Value], reader: str) -> None:
    for value in values:
        if not value.name or defined.get(value.name) is not value:
            raise IntegrityError(f"{reader} reads {value.name!r}, which nothing before it defines")
