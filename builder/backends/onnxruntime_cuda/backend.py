"""ONNX Runtime on NVIDIA GPUs, with our ops."""

from collections.abc import Sequence

import onnx

from precast.builder.backends.base import EngineFiles, WrittenFiles
from precast.builder.backends.kernel_process import compile_sets
from precast.builder.backends.onnxruntime_cuda.add_kernels import add_kernels
from precast.builder.backends.onnxruntime_cuda.lowering.pipeline import cuda_passes
from precast.builder.backends.onnxruntime_cuda.planning import kernel_targets
from precast.builder.backends.separate_weights import network_sha256, weights_as_inputs
from precast.builder.network.emitter import IR_VERSION, OPSET
from precast.builder.network.network import Network
from precast.builder.network.onnx_model import WEIGHTS_LOCATION, onnx_bytes
from precast.builder.packing import MappedTensors, pack_weights, weight_specs
from precast.builder.passes.base import Pass
from precast.builder.plan import BuildPlan, DevicePlan
from precast.builder.progress import ProgressCallback
from precast.checkpoints.engine_manifest import OnnxRuntimeCudaRequirements


class OnnxRuntimeCudaBackend:
    """The graph is stored as it is, with its weights as inputs, which lie beside it, and kernels in its nodes."""

    name = "onnxruntime-cuda"
    batch_invariant = False
    """cuBLAS chooses by the number of rows in which order it adds up."""
    reproducible = True

    def passes(self, plan: BuildPlan) -> Sequence[Pass]:
        return cuda_passes(plan)

    def requirements(self, plan: BuildPlan) -> OnnxRuntimeCudaRequirements:
        device = _device(plan)
        return OnnxRuntimeCudaRequirements(
            onnxruntime_min=device.library_version,
            ir_version=IR_VERSION,
            opset=OPSET,
            targets=device.targets,
            min_capability=device.min_capability,
            max_batch_size=device.max_batch_size,
            max_num_tokens=device.max_num_tokens,
        )

    def write(
        self,
        network: Network,
        tensors: MappedTensors,
        directory: str,
        output: EngineFiles,
        plan: BuildPlan,
        progress: ProgressCallback,
    ) -> WrittenFiles:
        graph, weights = f"{directory}/model.onnx", f"{directory}/{WEIGHTS_LOCATION}"
        total_bytes = sum(recipe.size_bytes for recipe in network.weights.values())
        with output.open_weights(weights, weight_specs(network)) as weights_file:
            pack_weights(network, tensors, weights_file, progress)
        data = onnx_bytes(network, dict.fromkeys(network.weights, 0))
        model = onnx.ModelProto.FromString(weights_as_inputs(data))
        targets = kernel_targets(_device(plan).targets)

        progress("compiling kernels", 0, total_bytes)
        add_kernels(model, lambda sets: compile_sets(sets, targets))
        progress("compiling kernels", total_bytes, total_bytes)
        (output.path / graph).write_bytes(model.SerializeToString(deterministic=True))
        return WrittenFiles(graph, weights, weights_file.entry, network_sha256(data))


def _device(plan: BuildPlan) -> DevicePlan:
    if plan.device is None:
        raise ValueError("the plan is of another backend")
    return plan.device


BACKEND = OnnxRuntimeCudaBackend()
