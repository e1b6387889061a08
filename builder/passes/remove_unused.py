"""Dead code elimination: nodes and initialisers that nothing reads."""

from precast.builder.network.network import Network
from precast.builder.passes.base import Pass


class RemoveUnused(Pass):
    """Remove what does not reach the graph's outputs.

    1. A node none of whose outputs is read or is an output of the graph is removed; from the last node to the
       first, so that a whole dead chain goes in one run.
    2. An initialiser that no node reads is removed with its recipe: it takes no room in the weights file.
    3. Graph inputs stay, read or not: they are the runtime's contract.
    """

    name = "remove_unused"

    def apply(self, network: Network) -> bool:
        # 1.
        dead_nodes = 0
        for node in reversed(network.graph):
            if not any(value.uses() or value.is_graph_output() for value in node.outputs):
                network.graph.remove(node, safe=True)
                dead_nodes += 1
        # 2.
        unread = [name for name, value in network.graph.initializers.items() if not value.uses()]
        for name in unread:
            network.remove_weight(name)
        return bool(dead_nodes or unread)
