"""Root-mean-square normalisation."""

import onnx_ir as ir

from precast.builder.network.emitter import Emitter, num_features
from precast.checkpoints.model_config import NormConfig
from precast.plugins.rms_norm import schema as rms_norm


def emit_norm(emitter: Emitter, norm: NormConfig, x: ir.Value, name: str) -> ir.Value:
    """x [rows, features] -> its norm, of the same shape."""
    features = num_features(x)
    weight = emitter.plain_weight(f"{name}.weight", (features,))
    return emitter.op(rms_norm, rms_norm.RmsNormAttributes(norm.epsilon), [x, weight], name, features)
