"""TensorRT on NVIDIA GPUs, with our plugins."""

import os
from collections.abc import Sequence

from precast.builder.backends.base import EngineFiles, WrittenFiles
from precast.builder.backends.separate_weights import network_sha256, weights_as_inputs
from precast.builder.backends.tensorrt.build_plan import build_plan
from precast.builder.backends.tensorrt.lowering.pipeline import tensorrt_passes
from precast.builder.backends.tensorrt.plan_job import PlanJob
from precast.builder.backends.tensorrt.profiles import make_profiles
from precast.builder.backends.tensorrt.targets import kernel_capabilities
from precast.builder.network.network import Network
from precast.builder.network.onnx_model import WEIGHTS_LOCATION, onnx_bytes
from precast.builder.packing import MappedTensors, pack_weights, weight_specs
from precast.builder.passes.base import Pass
from precast.builder.plan import BuildPlan, DevicePlan
from precast.builder.progress import ProgressCallback
from precast.checkpoints.engine_manifest import TensorRtRequirements
from precast.checkpoints.weights_writer import WeightsWriter

PLAN_FILE = "model.plan"
_GRAPH_FILE = "model.onnx"
"""Only while the plan is built."""


class TensorRtBackend:
    """The lowered network goes through TensorRT's ONNX parser; tactics are chosen on the card."""

    name = "tensorrt"
    batch_invariant = False
    reproducible = False

    def passes(self, plan: BuildPlan) -> Sequence[Pass]:
        return tensorrt_passes(plan)

    def requirements(self, plan: BuildPlan) -> TensorRtRequirements:
        tensorrt = _device(plan)
        return TensorRtRequirements(
            library=tensorrt.library,
            library_version=tensorrt.library_version,
            targets=tensorrt.targets,
            min_capability=tensorrt.min_capability,
            quantization=tensorrt.quantization,
            max_batch_size=tensorrt.max_batch_size,
            max_num_tokens=tensorrt.max_num_tokens,
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
        tensorrt = _device(plan)
        graph, plan_file = output.path / directory / _GRAPH_FILE, f"{directory}/{PLAN_FILE}"
        weights = f"{directory}/{WEIGHTS_LOCATION}"
        with _open_weights(output, weights, network, tensorrt) as weights_file:
            pack_weights(network, tensors, weights_file, progress)
        offsets = {tensor.spec.name: tensor.offset for tensor in weights_file.index.tensors}
        data = onnx_bytes(network, offsets)
        graph.write_bytes(weights_as_inputs(data) if tensorrt.separate_weights else data)
        job = PlanJob(
            graph=str(graph.absolute()),
            weights="" if tensorrt.separate_weights else str((output.path / weights).absolute()),
            plan=str((output.path / plan_file).absolute()),
            library=tensorrt.library,
            targets=tensorrt.targets,
            kernel_capabilities=kernel_capabilities(tensorrt.targets),
            profiles=make_profiles(network, plan),
            parent_pid=os.getpid(),
        )
        build_plan(job, sum(recipe.size_bytes for recipe in network.weights.values()), progress)
        graph.unlink()
        if tensorrt.separate_weights:
            return WrittenFiles(plan_file, weights, weights_file.entry, network_sha256(data))
        (output.path / weights).unlink()
        return WrittenFiles(plan_file, None, None)


def _device(plan: BuildPlan) -> DevicePlan:
    if plan.device is None:
        raise ValueError("the plan is of another backend")
    return plan.device


def _open_weights(output: EngineFiles, path: str, network: Network, tensorrt: DevicePlan) -> WeightsWriter:
    """The weights file: of the engine, or one that only lasts until its tensors are in the plan."""
    specs = weight_specs(network)
    if tensorrt.separate_weights:
        return output.open_weights(path, specs)
    (output.path / path).parent.mkdir(parents=True, exist_ok=True)
    return WeightsWriter(output.path / path, specs)


BACKEND = TensorRtBackend()
