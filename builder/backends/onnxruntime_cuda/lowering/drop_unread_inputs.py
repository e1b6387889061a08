"""Inputs that nothing reads go: ONNX Runtime takes them for the host's, and would copy them there in every step."""

from precast.builder.network.network import Network
from precast.builder.passes.base import Pass


class DropUnreadInputs(Pass):
    """Remove inputs of the graph that nothing reads.

    1. Stages of a pipeline have some: rows of logits where there are none, the block tables of layers of others.
    """

    name = "drop_unread_inputs"

    def apply(self, network: Network) -> bool:
        # 1.
        unread = [value for value in network.graph.inputs if not value.uses()]
        for value in unread:
            network.graph.inputs.remove(value)
        return bool(unread)
