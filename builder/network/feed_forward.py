"""The gated feed-forward.

x -> gate, up (Linear) -> Concat -> GatedActivation -> down (Linear) -> AllReduce

With tensor parallelism each rank has a part of the intermediate size, and AllReduce adds the ranks' results up.
"""

import onnx_ir as ir

from precast.builder.network.collectives import emit_all_reduce
from precast.builder.network.emitter import Emitter, num_features
from precast.checkpoints.model_config import MlpConfig
from precast.plugins.gated_activation import schema as gated_activation


def emit_feed_forward(emitter: Emitter, mlp: MlpConfig, x: ir.Value, name: str) -> ir.Value:
    """down(activation(gate x) * up x), of the shape of x [num_tokens, hidden_size]."""
    size = mlp.intermediate_size
    gate_up = [
        emitter.linear(x, f"{name}.gate", size, bias=mlp.bias),
        emitter.linear(x, f"{name}.up", size, bias=mlp.bias),
    ]
    joined = emitter.builtin("Concat", gate_up, f"{name}.gate_up", 2 * size, axis=-1)
    attributes = gated_activation.GatedActivationAttributes(mlp.activation)
    activated = emitter.op(gated_activation, attributes, [joined], f"{name}.activation", size)
    output = emitter.linear(activated, f"{name}.down", num_features(x), bias=mlp.bias)
    return emit_all_reduce(emitter, output, num_features(x))
