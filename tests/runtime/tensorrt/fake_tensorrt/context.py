"""An execution context: shapes and addresses are set, then a step is enqueued, and computed when somebody waits."""

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

from tests.runtime.tensorrt.fake_cuda.errors import Misuse
from tests.runtime.tensorrt.fake_cuda.machine import MACHINE
from tests.runtime.tensorrt.fake_cuda.memory import Allocation, Span
from tests.runtime.tensorrt.fake_cuda.streams import Operation
from tests.runtime.tensorrt.fake_cuda.types import STICKY, CUresult
from tests.runtime.tensorrt.fake_tensorrt.basics import Dims, ILogger
from tests.runtime.tensorrt.fake_tensorrt.enums import ExecutionContextAllocationStrategy, TensorIOMode
from tests.runtime.tensorrt.fake_tensorrt.evaluator import TensorInfo
from tests.runtime.tensorrt.fake_tensorrt.plan import Range
from tests.runtime.tensorrt.fake_tensorrt.runtime import ICudaEngine, IRuntimeConfig

Shape = tuple[int, ...]
_SCRATCH = 0xA5
"""What a step leaves in its device memory: whoever keeps something else there loses it."""
_ALIGNMENT = 256


class IExecutionContext:
    """Not to be used by two threads at a time."""

    def __init__(self, engine: ICudaEngine, config: IRuntimeConfig) -> None:
        self.engine, self.ordinal = engine, engine.ordinal
        self._config = config
        self._profile = 0  # TensorRT chooses it for the first context
        self._shapes: dict[str, Shape] = {}
        self._addresses: dict[str, int] = {}
        self._prepared: object = None
        self._device_memory: Span | None = None
        self._own_memory: Allocation | None = None
        if not self._is_user_managed():
            device = MACHINE.current()
            self._own_memory = MACHINE.allocate(device, engine.device_memory_size_v2, is_pinned=False)
            self._device_memory = self._own_memory.span
        MACHINE.add_dependent(self)

    def __del__(self) -> None:
        if self._own_memory is not None:
            MACHINE.release_at_last(self._own_memory)

    # ------------------------------------------------------------------------------------------------------- setting

    @property
    def active_optimization_profile(self) -> int:
        return self._profile

    def get_runtime_config(self) -> IRuntimeConfig:
        return self._config

    def set_optimization_profile_async(self, profile_index: int, stream_handle: Any) -> bool:
        """Another profile takes the shapes that were set."""
        with MACHINE.lock:
            if self._fails("set_optimization_profile_async", int(profile_index), int(stream_handle)):
                return False
            try:
                if MACHINE.stream(stream_handle).capture is not None:
                    raise Misuse("the profile is changed while the stream captures: it may copy")
            except Misuse as error:
                return self._misused("set_optimization_profile_async", error)
            if not 0 <= profile_index < self.engine.num_optimization_profiles:
                return self._refuse(f"set_optimization_profile_async: there is no profile {profile_index}")
            if profile_index != self._profile:
                self._profile = int(profile_index)
                self._shapes.clear()
            return True

    def set_input_shape(self, name: str, shape: "Sequence[int] | Dims") -> bool:
        """False where the shape is outside the profile."""
        with MACHINE.lock:
            sizes = tuple(int(shape[index]) for index in range(len(shape)))
            if self._fails("set_input_shape", name, sizes):
                return False
            if self.engine.get_tensor_mode(name) != TensorIOMode.INPUT:
                return self._refuse(f"set_input_shape: {name} is no input")
            entry = self._range(name)
            fits = sizes == self.engine.tensors[name].static_shape if entry is None else entry.holds(sizes)
            if not fits:
                return self._refuse(f"set_input_shape: {name} {sizes} is not in the profile {self._profile}: {entry}")
            self._shapes[name] = sizes
            return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in self.engine.tensors:
            return self._refuse(f"set_tensor_address: there is no tensor {name}")
        self._addresses[name] = int(memory)
        return True

    def get_tensor_address(self, name: str) -> int:
        return self._addresses.get(name, 0)

    def set_device_memory(self, memory: int, size: int) -> None:
        """Only where the user manages it."""
        with MACHINE.lock:
            if not self._is_user_managed():
                MACHINE.note_misuse("set_device_memory: the context has memory of its own")
                return
            if int(memory) % _ALIGNMENT:
                MACHINE.note_misuse(f"set_device_memory: {int(memory):#x} is no multiple of {_ALIGNMENT}")
            self._device_memory = Span(int(memory), int(size), is_written=True)

    def get_tensor_shape(self, name: str) -> Dims:
        """Of an input as it was set, of an output as it follows; -1 where that is not known yet."""
        return Dims(self._shape(self.engine.tensors[name]))

    def infer_shapes(self) -> list[str]:
        """The inputs whose shapes are still to be set."""
        return [name for name, info in self._inputs() if min(self._shape(info), default=0) < 0]

    @property
    def all_binding_shapes_specified(self) -> bool:
        return not self.infer_shapes()

    def is_stream_capturable(self, stream: int) -> bool:
        with MACHINE.lock:
            try:
                MACHINE.stream(stream)
            except Misuse as error:
                return self._misused("is_stream_capturable", error)
            return MACHINE.settings.is_stream_capturable

    # ----------------------------------------------------------------------------------------------------- executing

    def execute_async_v3(self, stream_handle: Any) -> bool:
        """Enqueue a step with the shapes and addresses of now; the bytes are read when it runs."""
        with MACHINE.lock:
            if self._fails("execute_async_v3", int(stream_handle)):
                return False
            try:
                stream = MACHINE.stream(stream_handle)
                step = self._describe()
                self._check_prepared(is_captured=stream.capture is not None)
                MACHINE.enqueue(stream, step)
            except Misuse as error:
                return self._misused("execute_async_v3", error)
            if (cache := self._config.get_runtime_cache()) is not None:
                sizes = {name: self._shapes[name] for name in sorted(self._shapes)}
                cache.shapes.add(f"profile {self._profile}: {sizes}")
            return True

    def _check_prepared(self, *, is_captured: bool) -> None:
        """A step prepares for its shapes, and a graph must not hold that. Raises Misuse where the last one had others.

        Source: NVIDIA, TensorRT documentation, "CUDA Graphs": enqueue once after a shape was changed, then capture.
        """
        prepared = (self._profile, tuple(sorted(self._shapes.items())))
        if is_captured and self._prepared != prepared:
            raise Misuse("the step before had other shapes: enqueue one with these before one is captured")
        self._prepared = prepared

    def _describe(self) -> Operation:
        """The step as an operation of a stream. Raises Misuse where something is missing or does not fit."""
        device = MACHINE.current()
        if device.ordinal != self.engine.ordinal:
            raise Misuse(f"an engine of device {self.engine.ordinal} runs in the context of device {device.ordinal}")
        if missing := self.infer_shapes():
            raise Misuse(f"the shape of {', '.join(missing)} is not set")
        if missing := [name for name in self.engine.tensors if not self._addresses.get(name)]:
            raise Misuse(f"the address of {', '.join(missing)} is not set")
        self._check_sizes()
        inputs = {name: self._view(info) for name, info in self._inputs()}
        outputs = {name: self._view(info) for name, info in self._outputs()}
        scratch = self._scratch()
        evaluator, collectives = self.engine.evaluator, self.engine.collectives

        def run() -> None:
            scratch.fill(_SCRATCH)
            with collectives.of_a_step():
                results = evaluator(inputs)
            for name, array in results.items():
                target = outputs[name]
                if array.shape != target.shape or array.dtype != target.dtype:
                    raise TypeError(f"{name} is {array.dtype} {array.shape}, not {target.dtype} {target.shape}")
                if array.ctypes.data != target.ctypes.data:
                    if name in evaluator.aliases:
                        raise TypeError(f"{name} was not written in place")
                    target[...] = array

        spans = [*_spans(inputs, is_written=False), *_spans(outputs, is_written=True)]
        self._check_overlaps()
        return Operation("step of the network", (*spans, Span(scratch.ctypes.data, scratch.nbytes, True)), run)

    def _check_sizes(self) -> None:
        """Sizes of one name are equal in all inputs, as TensorRT wants it."""
        sizes: dict[str, tuple[int, str]] = {}
        for name, info in self._inputs():
            for size_name, size in zip(info.dims, self._shape(info), strict=True):
                if isinstance(size_name, str):
                    first, first_name = sizes.setdefault(size_name, (size, name))
                    if first != size:
                        raise Misuse(f"{size_name} is {first} in {first_name} and {size} in {name}")

    def _check_overlaps(self) -> None:
        """Outputs have memory of their own, but for those that are written in place.

        Pools may be the same memory, of which each has blocks of its own: layers with different windows share it.
        """
        aliases = self.engine.evaluator.aliases
        for output, source in aliases.items():
            if self._addresses[output] != self._addresses[source]:
                raise Misuse(f"{output} is at {self._addresses[output]:#x}, not where {source} is")
        spans = {name: self._span(info) for name, info in self.engine.tensors.items() if name not in aliases}
        assert self._device_memory is not None  # _scratch has looked
        spans["the device memory"] = self._device_memory
        written = {*spans} - {name for name, _ in self._inputs()} | set(aliases.values())
        pools = {*aliases.values()}
        for first in written:
            for other, span in spans.items():
                if {first, other} <= pools and spans[first] == span:
                    continue
                if other != first and spans[first].overlaps(span):
                    raise Misuse(f"{first} and {other} overlap")

    def _scratch(self) -> Any:
        needed = self.engine.get_device_memory_size_for_profile_v2(self._profile)
        if self._device_memory is None:
            raise Misuse("the device memory is not set")
        if self._device_memory.size_bytes < needed:
            raise Misuse(f"the device memory has {self._device_memory.size_bytes} bytes, the profile needs {needed}")
        return MACHINE.memory.on_device(self._device_memory.address, needed, self.engine.ordinal)

    def _view(self, info: TensorInfo) -> Any:
        """The tensor in device memory."""
        span = self._span(info)
        try:
            data = MACHINE.memory.on_device(span.address, span.size_bytes, self.engine.ordinal)
        except Misuse as error:
            raise Misuse(f"{info.name}: {error}") from None
        return data.view(info.dtype).reshape(self._shape(info))

    def _span(self, info: TensorInfo) -> Span:
        return Span(self._addresses[info.name], prod(self._shape(info)) * info.dtype.itemsize)

    # ----------------------------------------------------------------------------------------------------- the tensors

    def _inputs(self) -> Iterator[tuple[str, TensorInfo]]:
        return ((info.name, info) for info in self.engine.evaluator.inputs)

    def _outputs(self) -> Iterator[tuple[str, TensorInfo]]:
        return ((info.name, info) for info in self.engine.evaluator.outputs)

    def _range(self, name: str) -> Range | None:
        return next((entry for entry in self.engine.plan.profiles[self._profile] if entry.name == name), None)

    def _shape(self, info: TensorInfo) -> Shape:
        """-1 where a size is not known."""
        if info.name in self._shapes:
            return self._shapes[info.name]
        is_input = self.engine.get_tensor_mode(info.name) == TensorIOMode.INPUT
        sizes = {} if is_input else self._known_sizes()
        return tuple(size if isinstance(size, int) else sizes.get(size, -1) for size in info.dims)

    def _known_sizes(self) -> dict[str, int]:
        pairs = (zip(info.dims, self._shapes.get(name, ()), strict=False) for name, info in self._inputs())
        return {name: size for pair in pairs for name, size in pair if isinstance(name, str)}

    def _is_user_managed(self) -> bool:
        strategy = self._config.get_execution_context_allocation_strategy()
        return strategy == ExecutionContextAllocationStrategy.USER_MANAGED

    def _fails(self, name: str, *arguments: Any) -> bool:
        """Write the call down; whether it was told to fail, or the device has failed."""
        status = MACHINE.begin_call(name, *arguments)
        device = MACHINE.devices[self.engine.ordinal]
        if status in STICKY:
            device.failure = status
        status = device.failure or status
        if status == CUresult.CUDA_SUCCESS:
            return False
        self._refuse(f"{name}: {status.name}")
        return True

    def _misused(self, name: str, error: Misuse) -> bool:
        MACHINE.note_misuse(f"{name}: {error}")
        return self._refuse(f"{name}: {error}")

    def _refuse(self, text: str) -> bool:
        self.engine.runtime.logger.log(ILogger.ERROR, f"IExecutionContext::{text}")
        return False


def _spans(arrays: dict[str, Any], *, is_written: bool) -> list[Span]:
    return [Span(array.ctypes.data, array.nbytes, is_written) for array in arrays.values()]
