"""ONNX Runtime on the CPU, with our ops."""

from collections.abc import Mapping

from precast.builder.network.emitter import IR_VERSION, OPSET
from precast.builder.network.network import Network
from precast.builder.network.onnx_model import onnx_bytes
from precast.checkpoints.engine_manifest import OnnxRuntimeRequirements


class OnnxRuntimeBackend:
    """The graph is stored as it is: ONNX Runtime's optimiser never sees it, so it outlives any one release."""

    name = "onnxruntime"
    graph_file = "model.onnx"
    requirements = OnnxRuntimeRequirements("1.23", IR_VERSION, OPSET)
    batch_invariant = True
    reproducible = True

    def lower(self, network: Network, weight_offsets: Mapping[str, int]) -> bytes:
        return onnx_bytes(network, weight_offsets)


BACKEND = OnnxRuntimeBackend()
