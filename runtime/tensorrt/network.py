"""A plan that is loaded: its execution contexts, and what their inputs and outputs are bound to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from precast.plugins.device.driver import DeviceError
from precast.plugins.tensorrt.logger import make_logger
from precast.runtime.device.device import Device
from precast.runtime.device.network import GraphBook, say
from precast.runtime.device.shapes import CONTEXT, DECODE, StepShape
from precast.runtime.errors import ErrorCode, make_error
from precast.runtime.tensorrt.runtime_cache import CachePlace, StaleCacheError, read_cache, write_cache

_PROFILES = (DECODE, CONTEXT)


class PlanNetwork:
    """A plan on a device; runtime/device/network.py says what each function does.

    Args:
        trt: The module tensorrt_rtx or tensorrt, which knows the plugins of the plan.
        device: Where it runs.
        plan: The bytes of the plan; they may go when this returns.
        source: The plan's file, for messages.
        plugin_errors: What plugins add their errors to.
        cache: Where what is compiled on this GPU is kept.

    Raises:
        EngineLoadError: TensorRT refuses the plan; the message has its words.
        DeviceError: there is not enough memory.
    """

    grows_when_run = False

    def __init__(
        self,
        trt: Any,
        device: Device,
        plan: memoryview,
        source: str,
        plugin_errors: list[str],
        cache: CachePlace,
    ) -> None:
        self._trt, self._device, self._source, self._cache_place = trt, device, source, cache
        self._messages: list[str] = []
        self._plugin_errors = plugin_errors
        self._logger = make_logger(trt, self._messages, lambda message: say(f"TensorRT: {message}"))
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise make_error(ErrorCode.UNSUPPORTED_ENGINE, f"{source}: TensorRT refuses the plan: {self._cause()}")
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        inputs = [self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names]
        self.inputs = tuple(name for name, is_input in zip(names, inputs, strict=True) if is_input)
        self.outputs = tuple(name for name, is_input in zip(names, inputs, strict=True) if not is_input)
        self._contexts: dict[int, Any] = {}
        self._cache: Any = None
        self._cache_config: Any = None  # which made it: TensorRT does not say that a cache may outlive that
        self._graphs = GraphBook(device)

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Of an input or output; -1 where it is a step's."""
        return tuple(self._engine.get_tensor_shape(name))

    def prepare(self) -> None:
        """Make contexts, with what an earlier process has compiled, where that is of this plan, GPU and driver."""
        try:
            compiled = read_cache(self._cache_place)
            stale = "TensorRT refuses it" if not self._make_contexts(compiled) else None
        except StaleCacheError as error:
            self._make_contexts()
            stale = f"it {error}"
        if stale is not None:
            say(f"{self._cache_place.path} is not used: {stale}; `precast warm` writes one for this machine")

    def _make_contexts(self, compiled: bytes | None = None) -> bool:
        """Make a context for each profile, and their memory. TensorRT-RTX compiles kernels here.

        Args:
            compiled: What an earlier network of this plan had compiled: it need not be compiled again.

        Returns:
            Whether TensorRT takes what was compiled; True where there is nothing.

        Raises:
            DeviceError: TensorRT, or the device, refuses; there is not enough memory for activations.
        """
        sizes = [self._engine.get_device_memory_size_for_profile_v2(profile) for profile in _PROFILES]
        # Contexts never run at the same time, and what is in their memory does not outlive a step.
        num_bytes = max(*sizes, 1)
        is_taken = self._open_cache(compiled)
        memory = self._device.allocate(num_bytes, "activations")
        for profile in _PROFILES:
            context = self._make_context(profile)
            if context is None or not context.set_optimization_profile_async(profile, self._device.stream):
                raise DeviceError(f"TensorRT cannot make an execution context: {self._cause()}")
            context.set_device_memory(memory, num_bytes)
            self._contexts[profile] = context
        self._device.synchronize()
        return is_taken

    def keep_compiled(self, num_steps: int) -> str:
        """Only TensorRT-RTX compiles where it runs."""
        if self._cache is None:
            return "nothing to keep: only TensorRT-RTX compiles where it runs"
        compiled = bytes(memoryview(self._cache.serialize()))
        write_cache(self._cache_place, compiled)
        return f"{self._cache_place.path}: {len(compiled)} bytes, compiled for {num_steps} shapes"

    def _open_cache(self, compiled: bytes | None) -> bool:
        if not hasattr(self._trt, "IRuntimeCache"):  # only TensorRT-RTX compiles on the card
            return compiled is None
        self._cache_config = self._engine.create_runtime_config()
        self._cache = self._cache_config.create_runtime_cache()
        return compiled is None or bool(self._cache.deserialize(compiled))

    def bind(self, shapes: Mapping[str, tuple[int, ...]], addresses: Mapping[str, int]) -> None:
        for context in self._contexts.values():
            self._bind(context, shapes, addresses)

    def close(self) -> None:
        """Release everything of TensorRT's."""
        self._graphs.close()
        self._contexts.clear()
        self._cache = None
        self._cache_config = None
        self._engine = self._runtime = None

    def _make_context(self, profile: int) -> Any:
        trt, engine = self._trt, self._engine
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._cache is None:
            return engine.create_execution_context(strategy)
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        config.set_runtime_cache(self._cache)
        # Prompts have as many shapes as there are lengths: compiling for each would never end. Decoding has few, and
        # what is recorded as a graph when a shape is first met stays as it is: better kernels must not come later.
        specialisation = trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = (
            specialisation.EAGER if profile == DECODE else specialisation.NONE
        )
        return engine.create_execution_context(config)

    def replay(self, shape: StepShape) -> bool:
        return self._graphs.replay(shape)

    def run(self, shape: StepShape, shapes: Mapping[str, tuple[int, ...]], addresses: Mapping[str, int]) -> None:
        context = self._contexts[shape.profile]
        self._bind(context, shapes, addresses)
        self._execute(context)
        is_capturable = getattr(context, "is_stream_capturable", None)
        if shape.repeats and is_capturable is not None and not is_capturable(self._device.stream):
            self._graphs.give_up("TensorRT cannot record this plan")
        self._graphs.record(shape, lambda: self._execute(context))

    def _bind(self, context: Any, shapes: Mapping[str, Sequence[int]], addresses: Mapping[str, int]) -> None:
        for name, shape in shapes.items():
            if not context.set_input_shape(name, tuple(shape)):
                raise DeviceError(f"TensorRT refuses the shape {list(shape)} of {name}: {self._cause()}")
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise DeviceError(f"TensorRT refuses the address of {name}: {self._cause()}")

    def _execute(self, context: Any) -> None:
        # A plugin that failed has written nothing, whatever TensorRT makes of it.
        if not context.execute_async_v3(self._device.stream) or self._plugin_errors:
            raise DeviceError(f"TensorRT cannot run {self._source}: {self._cause()}")

    def _cause(self) -> str:
        """What was said last, plugins first; it is forgotten then."""
        said = [*self._plugin_errors, *self._messages[-3:]]
        self._plugin_errors.clear()
        self._messages.clear()
        return " | ".join(said[:3]) or "it does not say why"
