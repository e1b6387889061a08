"""What layers give, as outputs of the network, so that two ways to run it can be compared layer by layer."""

from precast.builder.network.network import Network
from precast.builder.network.nodes import input_at, is_op
from precast.builder.passes.base import Pass
from precast.builder.plan import BuildPlan
from precast.plugins.rms_norm import schema as rms_norm


class MarkLayerOutputs(Pass):
    """Make outputs of the residual stream behind each mixer and each feed-forward, behind those that there are.

    1. The stream is the output `sum` of an RmsNorm that adds its residual: `layers.<i>.mixer_sum` and
       `layers.<i>.feed_forward_sum`.
    """

    name = "mark_layer_outputs"

    def apply(self, network: Network) -> bool:
        graph = network.graph
        # 1.
        sums = [node.outputs[1] for node in graph if is_op(node, rms_norm) and input_at(node, 2) is not None]
        graph.outputs.extend(sums)
        return bool(sums)


def marking_passes(plan: BuildPlan) -> tuple[Pass, ...]:
    """The pass, where the plan wants it."""
    return (MarkLayerOutputs(),) if plan.device is not None and plan.device.layer_outputs else ()
