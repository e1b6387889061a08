"""A plan that is loaded: its execution contexts, what their inputs and outputs are bound to, and graphs of them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from precast.plugins.device.driver import DeviceError
from precast.plugins.tensorrt.logger import make_logger
from precast.runtime.errors import ErrorCode, make_error
from precast.runtime.tensorrt.device import Device, Graph
from precast.runtime.tensorrt.shapes import CONTEXT, DECODE, StepShape

_PROFILES = (DECODE, CONTEXT)


class Network:
    """A plan on a device.

    Args:
        trt: The module tensorrt_rtx or tensorrt, which knows the plugins of the plan.
        device: Where it runs.
        plan: The bytes of the plan; they may go when this returns.
        source: The plan's file, for messages.
        plugin_errors: What plugins add their errors to.

    Raises:
        EngineLoadError: TensorRT refuses the plan; the message has its words.
        DeviceError: there is not enough memory.
    """

    def __init__(self, trt: Any, device: Device, plan: memoryview, source: str, plugin_errors: list[str]) -> None:
        self._trt, self._device, self._source = trt, device, source
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
        self._graphs: dict[StepShape, Graph] = {}
        self._makes_graphs = True

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Of an input or output; -1 where it is a step's."""
        return tuple(self._engine.get_tensor_shape(name))

    def make_contexts(self, compiled: bytes | None = None) -> bool:
        """Make a context for each profile, and their memory. TensorRT-RTX compiles kernels here.

        Args:
            compiled: What `compiled` gave of an earlier network of this plan: it need not be compiled again.

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

    def compiled(self) -> bytes | None:
        """What TensorRT has compiled on this GPU until now; None where it compiles nothing there."""
        if self._cache is None:
            return None
        data: bytes = bytes(memoryview(self._cache.serialize()))
        return data

    def _open_cache(self, compiled: bytes | None) -> bool:
        if not hasattr(self._trt, "IRuntimeCache"):  # only TensorRT-RTX compiles on the card
            return compiled is None
        self._cache = self._engine.create_runtime_config().create_runtime_cache()
        return compiled is None or bool(self._cache.deserialize(compiled))

    def bind(self, shapes: Mapping[str, tuple[int, ...]], addresses: Mapping[str, int]) -> None:
        """Say once what is the same in all steps: where inputs and outputs lie, and shapes that the plan leaves open.

        Raises:
            DeviceError: TensorRT refuses one.
        """
        for context in self._contexts.values():
            self._bind(context, shapes, addresses)

    def close(self) -> None:
        """Release everything of TensorRT's, which must go before the device does. Nothing may be running."""
        self._graphs.clear()
        self._contexts.clear()
        self._cache = self._engine = self._runtime = None

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
        """Enqueue a step whose shape is recorded. False: it is not, and nothing happens."""
        graph = self._graphs.get(shape)
        if graph is not None:
            self._device.launch(graph)
        return graph is not None

    def run(self, shape: StepShape, shapes: Mapping[str, tuple[int, ...]], addresses: Mapping[str, int]) -> None:
        """Enqueue a step, and record its shape where that repeats: its addresses must be the same each time.

        Args:
            shapes: Of the inputs that a step brings.
            addresses: Of these, and of outputs whose place depends on the shape.

        Raises:
            DeviceError: TensorRT, a plugin or the device refuses it.
        """
        context = self._contexts[shape.profile]
        self._bind(context, shapes, addresses)
        self._execute(context)
        if shape.repeats and self._makes_graphs:
            self._record(context, shape)

    def _record(self, context: Any, shape: StepShape) -> None:
        """Record what has just been run: what TensorRT does once for a new shape is no part of the graph then."""
        is_capturable = getattr(context, "is_stream_capturable", None)
        if is_capturable is not None and not is_capturable(self._device.stream):
            self._go_without_graphs("TensorRT cannot record this plan")
            return
        try:
            self._graphs[shape] = self._device.capture(lambda: self._execute(context))
        except DeviceError as error:
            self._go_without_graphs(str(error))

    def _go_without_graphs(self, reason: str) -> None:
        self._makes_graphs = False
        say(f"CUDA graphs are off, and decoding is slower: {reason}")

    def _bind(self, context: Any, shapes: Mapping[str, Sequence[int]], addresses: Mapping[str, int]) -> None:
        for name, shape in shapes.items():
            if not context.set_input_shape(name, tuple(shape)):
                raise DeviceError(f"TensorRT refuses the shape {list(shape)} of {name}: {self._cause()}")
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise DeviceError(f"TensorRT refuses the address of {name}: {self._cause()}")

    def _execute(self, context: Any) -> None:
        if not context.execute_async_v3(self._device.stream):
            raise DeviceError(f"TensorRT cannot run {self._source}: {self._cause()}")

    def _cause(self) -> str:
        """What was said last, plugins first; it is forgotten then."""
        said = [*self._plugin_errors, *self._messages[-3:]]
        self._plugin_errors.clear()
        self._messages.clear()
        return " | ".join(said[:3]) or "it does not say why"


def say(message: str) -> None:
    """A line for the log of the engine, which reads what this process writes."""
    print(message, file=sys.stderr, flush=True)
