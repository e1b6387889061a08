"""ONNX Runtime on the CPU, with our ops."""

from collections.abc import Sequence

from precast.builder.backends.base import EngineFiles, WrittenFiles
from precast.builder.network.emitter import IR_VERSION, OPSET
from precast.builder.network.network import Network
from precast.builder.network.onnx_model import WEIGHTS_LOCATION, onnx_bytes
from precast.builder.packing import MappedTensors, pack_weights, weight_specs
from precast.builder.passes.base import Pass
from precast.builder.passes.pipeline import PIPELINE
from precast.builder.plan import BuildPlan
from precast.builder.progress import ProgressCallback
from precast.checkpoints.engine_manifest import OnnxRuntimeRequirements


class OnnxRuntimeBackend:
    """The graph is stored as it is: ONNX Runtime's optimiser never sees it, so it outlives any one release."""

    name = "onnxruntime"
    batch_invariant = True
    reproducible = True

    def passes(self, plan: BuildPlan) -> Sequence[Pass]:
        del plan
        return PIPELINE

    def requirements(self, plan: BuildPlan) -> OnnxRuntimeRequirements:
        del plan
        return OnnxRuntimeRequirements("1.23", IR_VERSION, OPSET)

    def write(
        self,
        network: Network,
        tensors: MappedTensors,
        directory: str,
        output: EngineFiles,
        plan: BuildPlan,
        progress: ProgressCallback,
    ) -> WrittenFiles:
        del plan
        graph, weights = f"{directory}/model.onnx", f"{directory}/{WEIGHTS_LOCATION}"
        with output.open_weights(weights, weight_specs(network)) as weights_file:
            offsets = {tensor.spec.name: tensor.offset for tensor in weights_file.index.tensors}
            (output.path / graph).write_bytes(onnx_bytes(network, offsets))
            pack_weights(network, tensors, weights_file, progress)
        return WrittenFiles(graph, weights, weights_file.entry)


BACKEND = OnnxRuntimeBackend()
