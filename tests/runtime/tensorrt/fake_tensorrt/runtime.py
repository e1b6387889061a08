"""The runtime, engines, and how contexts of them are configured."""

import hashlib
import json
from typing import Any

import numpy as np

from tests.runtime.tensorrt.fake_cuda.errors import Misuse, StatusError
from tests.runtime.tensorrt.fake_cuda.machine import MACHINE
from tests.runtime.tensorrt.fake_cuda.memory import Allocation
from tests.runtime.tensorrt.fake_cuda.types import CUresult
from tests.runtime.tensorrt.fake_tensorrt.basics import Dims, IHostMemory, ILogger
from tests.runtime.tensorrt.fake_tensorrt.collectives import StepCollectives
from tests.runtime.tensorrt.fake_tensorrt.enums import (
    CudaGraphStrategy,
    DataType,
    DynamicShapesKernelSpecializationStrategy,
    ExecutionContextAllocationStrategy,
    PluginFieldType,
    TensorIOMode,
    TensorLocation,
    TensorRTPhase,
)
from tests.runtime.tensorrt.fake_tensorrt.evaluator import Node, evaluator_of
from tests.runtime.tensorrt.fake_tensorrt.plan import FakePlan, PlanError
from tests.runtime.tensorrt.fake_tensorrt.plugins import (
    IPluginRegistry,
    PluginField,
    PluginFieldCollection,
    get_plugin_registry,
)

VERSION = "1.7.1.116"
_CACHE_MAGIC = b"precast: a fake runtime cache\n"
_KERNELS = b"kernels that nobody loads"
_KERNEL_FIELDS = ("kernels_sha256", "kernels")
"""As they are in plans: the first plugin of each op has the bytes, the others name their hash."""
_PARSER_ATTRIBUTES = ("plugin_namespace", "plugin_version")


class Runtime:
    """Makes engines of plans."""

    def __init__(self, logger: ILogger) -> None:
        if not getattr(logger, "_is_made", False):
            raise TypeError(f"{type(logger).__name__}.__init__() must be called when overriding __init__")
        self.logger = logger
        self._registry = IPluginRegistry(get_plugin_registry())

    def get_plugin_registry(self) -> IPluginRegistry:
        """Of this runtime; those of the process are found behind it."""
        return self._registry

    def deserialize_cuda_engine(self, serialized_engine: Any) -> "ICudaEngine | None":
        """None where it is no plan, or one for other devices or another version; the logger is told."""
        with MACHINE.lock:
            try:
                status = MACHINE.begin_call("deserialize_cuda_engine")
                if status != CUresult.CUDA_SUCCESS:
                    raise PlanError(status.name)
                if not MACHINE.devices:
                    raise PlanError("Cuda Runtime (cudaError 100: no CUDA-capable device is detected)")
                MACHINE.current()
                plan = FakePlan.from_bytes(bytes(memoryview(serialized_engine)))
                _check_plan(plan)
                return ICudaEngine(plan, self)
            except Misuse as error:
                MACHINE.note_misuse(f"deserialize_cuda_engine: {error}")
                self._say(str(error))
            except (PlanError, StatusError) as error:
                self._say(str(error))
            return None

    def _say(self, text: str) -> None:
        self.logger.log(ILogger.ERROR, f"[runtime.cpp::deserialize] Error Code 1: {text}")


def _check_plan(plan: FakePlan) -> None:
    if plan.library_version != VERSION:
        raise PlanError(f"the plan is of version {plan.library_version}, the library's is {VERSION}")
    major, minor = MACHINE.settings.capability
    number = 10 * major + minor
    fits = number in (80, 86, 89) or number >= 120 if plan.targets[0] in ("portable", "current") else False
    if not fits and f"sm{number}" not in plan.targets:
        raise PlanError(
            f"the plan is for {', '.join(plan.targets)}, the device's compute capability is {major}.{minor}"
        )


class ICudaEngine:
    """A plan on a device, where the weights that are inside it take memory."""

    def __init__(self, plan: FakePlan, runtime: Runtime) -> None:
        self._memory: Allocation | None = None
        self.plan, self.runtime = plan, runtime
        self.evaluator = evaluator_of(plan.model)
        self.ordinal = MACHINE.current().ordinal
        self._inputs = {info.name: info for info in self.evaluator.inputs}
        self._outputs = {info.name: info for info in self.evaluator.outputs}
        self.tensors = self._inputs | self._outputs
        firsts = {node.op_type: node for node in reversed(self.evaluator.plugin_nodes)}
        self.plugins = [
            self._make_plugin(node, is_first=node is firsts[node.op_type]) for node in self.evaluator.plugin_nodes
        ]
        names = [node.name for node in self.evaluator.plugin_nodes]
        self.collectives = StepCollectives(dict(zip(names, self.plugins, strict=True)))

        if self.evaluator.weights_bytes:
            self._memory = MACHINE.allocate(MACHINE.current(), self.evaluator.weights_bytes, is_pinned=False)
        MACHINE.add_dependent(self)

    def _make_plugin(self, node: Node, *, is_first: bool) -> Any:
        """As TensorRT does it from a plan: the fields that the plugin serialised when it was built."""
        namespace, version = (node.attributes[name].decode("ascii") for name in _PARSER_ATTRIBUTES)
        creator = self.runtime.get_plugin_registry().get_creator(node.op_type, version, namespace)
        if creator is None:
            raise PlanError(f"Cannot find plugin: {node.op_type}, version: {version}, namespace: {namespace}.")
        fields = [_field(name, value) for name, value in node.attributes.items() if name not in _PARSER_ATTRIBUTES]
        fields += _kernel_fields(with_kernels=is_first)
        plugin = creator.create_plugin(node.name, PluginFieldCollection(fields), TensorRTPhase.RUNTIME)
        if plugin is None:
            raise PlanError(f"Could not deserialize plugin {node.name}")
        return plugin

    def __del__(self) -> None:
        if self._memory is not None:
            MACHINE.release_at_last(self._memory)

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.plan.profiles)

    @property
    def device_memory_size_v2(self) -> int:
        """For the profile that needs most."""
        return max(self.plan.scratch_bytes)

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return self.plan.scratch_bytes[profile_index]

    def get_tensor_name(self, index: int) -> str:
        return tuple(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        if name in self._inputs:
            return TensorIOMode.INPUT
        return TensorIOMode.OUTPUT if name in self._outputs else TensorIOMode.NONE

    def get_tensor_dtype(self, name: str) -> DataType:
        return self.tensors[name].data_type

    def get_tensor_location(self, name: str) -> TensorLocation:
        del name
        return TensorLocation.DEVICE

    def get_tensor_shape(self, name: str) -> Dims:
        """-1 where the size is only known in a step."""
        return Dims([size if isinstance(size, int) else -1 for size in self.tensors[name].dims])

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Dims]:
        """Least, most common and greatest."""
        for entry in self.plan.profiles[profile_index]:
            if entry.name == name:
                return [Dims(entry.least), Dims(entry.common), Dims(entry.greatest)]
        return [self.get_tensor_shape(name)] * 3

    def get_aliased_input_tensor(self, name: str) -> str | None:
        return self.evaluator.aliases.get(name)

    def create_runtime_config(self) -> "IRuntimeConfig":
        return IRuntimeConfig()

    def create_execution_context(
        self,
        strategy: "ExecutionContextAllocationStrategy | IRuntimeConfig | None" = None,
        *,
        runtime_config: "IRuntimeConfig | None" = None,
    ) -> Any:
        """One more context. None where its memory cannot be had."""
        from tests.runtime.tensorrt.fake_tensorrt.context import IExecutionContext  # which knows engines

        config = runtime_config or (strategy if isinstance(strategy, IRuntimeConfig) else IRuntimeConfig())
        if isinstance(strategy, ExecutionContextAllocationStrategy):
            config.set_execution_context_allocation_strategy(strategy)
        with MACHINE.lock:
            if MACHINE.begin_call("create_execution_context") != CUresult.CUDA_SUCCESS:
                self.runtime.logger.log(ILogger.ERROR, "create_execution_context: it was told to fail")
                return None
            try:
                return IExecutionContext(self, config)
            except StatusError as error:
                self.runtime.logger.log(ILogger.ERROR, f"create_execution_context: {error}")
                return None


class IRuntimeConfig:
    """The defaults are TensorRT-RTX's."""

    def __init__(self) -> None:
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED
        self.dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY
        self._allocation = ExecutionContextAllocationStrategy.STATIC
        self._cache: IRuntimeCache | None = None

    def set_execution_context_allocation_strategy(
        self, strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC
    ) -> None:
        self._allocation = strategy

    def get_execution_context_allocation_strategy(self) -> ExecutionContextAllocationStrategy:
        return self._allocation

    def create_runtime_cache(self) -> "IRuntimeCache":
        return IRuntimeCache()

    def set_runtime_cache(self, cache: "IRuntimeCache | None" = None) -> bool:
        self._cache = cache
        return True

    def get_runtime_cache(self) -> "IRuntimeCache | None":
        return self._cache


class IRuntimeCache:
    """Kernels that were compiled on the device; here, the names of the shapes that were seen."""

    def __init__(self) -> None:
        self.shapes: set[str] = set()

    def serialize(self) -> IHostMemory:
        content = {"environment": _environment(), "shapes": sorted(self.shapes)}
        return IHostMemory(_CACHE_MAGIC + json.dumps(content).encode("ascii"))

    def deserialize(self, blob: Any) -> bool:
        """False, and nothing changes, where it is no cache, or one of another version or device."""
        data = bytes(memoryview(blob))
        if not data.startswith(_CACHE_MAGIC):
            return False
        try:
            content = json.loads(data[len(_CACHE_MAGIC) :])
        except ValueError:
            return False
        if content["environment"] != _environment():
            return False
        self.shapes |= set(content["shapes"])
        return True

    def reset(self) -> bool:
        self.shapes.clear()
        return True


def _environment() -> list[Any]:
    return [VERSION, MACHINE.settings.name, list(MACHINE.settings.capability)]


def _field(name: str, value: Any) -> PluginField:
    if isinstance(value, bytes):
        return PluginField(name, np.frombuffer(value, np.int8), PluginFieldType.CHAR)
    if isinstance(value, float):
        return PluginField(name, np.array([value], np.float32), PluginFieldType.FLOAT32)
    return PluginField(name, np.array([value], np.int32), PluginFieldType.INT32)


def _kernel_fields(*, with_kernels: bool) -> list[PluginField]:
    sha256 = hashlib.sha256(_KERNELS).hexdigest().encode("ascii")
    hash_name, bytes_name = _KERNEL_FIELDS
    fields = [PluginField(hash_name, np.frombuffer(sha256, np.int8), PluginFieldType.CHAR)]
    if with_kernels:
        fields.append(PluginField(bytes_name, np.frombuffer(_KERNELS, np.int8), PluginFieldType.INT8))
    return fields
