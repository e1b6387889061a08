"""The last pass: nothing goes to what runs a network that it does not have."""

from collections.abc import Sequence

from precast.builder.network.network import Network
from precast.builder.passes.base import InvariantError, Pass
from precast.builder.passes.check_supported import versioned_op
from precast.checkpoints.weights_index import PLAIN_LAYOUT
from precast.plugins import DEVICE_LAYOUTS


class CheckLowered(Pass):
    """Refuse a graph that was not lowered whole; change nothing.

    1. A node is one of these of ONNX's, or of one of our ops that there are on the device.
    2. Weights are plain. The layouts of KV pools are those of devices.
    """

    name = "check_lowered"

    def __init__(self, title: str, builtin_ops: Sequence[str], ops: Sequence[str]) -> None:
        """`title` is what the errors call what is to run the network; `ops` are versioned."""
        self._title, self._builtin_ops, self._ops = title, frozenset(builtin_ops), frozenset(ops)

    def apply(self, network: Network) -> bool:
        # 1.
        for node in network.graph:
            is_known = node.op_type in self._builtin_ops if node.domain == "" else versioned_op(node) in self._ops
            if not is_known:
                raise InvariantError(
                    f"node {node.name} is a {node.domain}.{node.op_type}, which {self._title} does not have"
                )
        # 2.
        for name, recipe in network.weights.items():
            if recipe.layout != PLAIN_LAYOUT:
                raise InvariantError(
                    f"initialiser {name} is packed as {recipe.layout}, which {self._title} does not have"
                )
        for cache in network.kv_caches:
            if cache.layout not in DEVICE_LAYOUTS:
                raise InvariantError(
                    f"KV pool {cache.name} has the layout {cache.layout}, which {self._title} does not have"
                )
        return False
