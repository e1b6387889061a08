"""A graph that ONNX Runtime runs on one execution provider, on tensors that lie where the caller says.

Graphs are run as they are written: nothing is optimised, and no memory is planned ahead for shapes.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from ctypes import byref, c_char_p, c_int, c_int64, c_size_t, string_at
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from precast.plugins.onnxruntime.custom_op import CUDA_PROVIDER, CustomOps
from precast.plugins.onnxruntime.ort_abi import (
    DEFAULT_MEMORY,
    DEVICE_ALLOCATOR,
    DISABLE_ALL_OPTIMIZATIONS,
    ElementType,
    OrtApi,
    OrtError,
)
from precast.runtime.onnxruntime.ort_log import make_environment, take_messages

CPU_PROVIDER = "CPUExecutionProvider"


@dataclass(frozen=True)
class Provider:
    """Where a graph runs.

    Attributes:
        name: CUDAExecutionProvider or CPUExecutionProvider.
        memory: What ONNX Runtime calls the memory in which all bound tensors lie: Cuda or Cpu.
        ordinal: Of the device.
        options: The provider's own. For CUDA, user_compute_stream is a stream's handle in decimal.
    """

    name: str
    memory: str
    ordinal: int = 0
    options: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in {CPU_PROVIDER, CUDA_PROVIDER}:
            raise ValueError(f"the execution provider {self.name} is not one of {CPU_PROVIDER}, {CUDA_PROVIDER}")
        if self.name == CPU_PROVIDER and self.options:
            raise ValueError(f"{CPU_PROVIDER} has no options; got {', '.join(self.options)}")


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of a graph. A dimension is -1 where the graph leaves it open.

    Attributes:
        symbols: What the graph calls each dimension that it leaves open; "" for others.
    """

    name: str
    element_type: ElementType
    shape: tuple[int, ...]
    symbols: tuple[str, ...] = ()

    def accepts(self, shape: Sequence[int]) -> bool:
        return len(shape) == len(self.shape) and all(
            given >= 0 and expected in {-1, given} for given, expected in zip(shape, self.shape, strict=True)
        )

    def size_bytes(self, shape: Sequence[int]) -> int:
        return math.prod(shape) * self.element_type.size_bytes


class OrtSession:
    """One graph, opened. One thread at a time runs it.

    Attributes:
        inputs, outputs: What the graph has, in its order.
    """

    def __init__(
        self,
        api: OrtApi,
        graph: Path,
        ops: CustomOps,
        provider: Provider,
        config: Mapping[str, str] | None = None,
    ) -> None:
        """Args: `config`: entries of ONNX Runtime's session configuration, such as session.disable_cpu_ep_fallback.

        Raises:
            OrtError: ONNX Runtime refuses the graph or the provider; chained to an op's own exception, if there is one.
        """
        self.api = api
        self.graph = graph
        self._ops = ops
        self.inputs: tuple[TensorInfo, ...] = ()
        self.outputs: tuple[TensorInfo, ...] = ()
        self._bindings: list[OrtBinding] = []
        self._run_with_binding = api.function("RunWithBinding")
        self._environment = self._handle = self._run_options = self.memory_info = 0
        ops.take_exception()
        take_messages()
        try:
            self._open(graph, provider, config or {})
        except BaseException as error:
            self.close()
            if isinstance(error, OrtError):
                self._fail(error, "" if str(graph) in str(error) else f"{graph}: ")
            raise

    def new_binding(self) -> "OrtBinding":
        """It lives until it is closed, with the session at the latest."""
        binding = OrtBinding(self, self._open_handle())
        self._bindings.append(binding)
        return binding

    def run(self, binding: "OrtBinding") -> None:
        """Run the graph on the tensors of a binding, all of which must be bound. Does not wait for a device.

        Raises:
            ValueError: a tensor is not bound.
            OrtError: a node failed; chained to the op's own exception, if there is one.
        """
        binding.check_complete()
        if status := self._run_with_binding(self._open_handle(), self._run_options, binding.handle):
            self._fail(self.api.take_error(status))

    def close(self) -> None:
        """Closes bindings, too. Closing twice is harmless."""
        for binding in self._bindings.copy():
            binding.close()
        handle, self._handle = self._handle, 0
        self.api.release("Session", handle)
        run_options, self._run_options = self._run_options, 0
        self.api.release("RunOptions", run_options)
        memory_info, self.memory_info = self.memory_info, 0
        self.api.release("MemoryInfo", memory_info)
        environment, self._environment = self._environment, 0
        self.api.release("Env", environment)

    def forget(self, binding: "OrtBinding") -> None:
        """For a binding that closes."""
        if binding in self._bindings:
            self._bindings.remove(binding)

    def __enter__(self) -> "OrtSession":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, graph: Path, provider: Provider, config: Mapping[str, str]) -> None:
        api = self.api
        self._environment = make_environment(api)
        self.memory_info = api.make(
            "CreateMemoryInfo", provider.memory.encode(), DEVICE_ALLOCATOR, provider.ordinal, DEFAULT_MEMORY
        )
        with _released(api, "SessionOptions", api.make("CreateSessionOptions")) as options:
            api.call("SetSessionGraphOptimizationLevel", options, DISABLE_ALL_OPTIMIZATIONS)
            api.call("DisableMemPattern", options)
            api.call("SetIntraOpNumThreads", options, 1)  # no pool: the ops enqueue, and compute nothing here
            for key, value in config.items():
                api.call("AddSessionConfigEntry", options, key.encode(), value.encode())
            self._ops.add_to(options)
            if provider.name == CUDA_PROVIDER:
                _append_cuda(api, options, provider)
            self._handle = api.make("CreateSession", self._environment, str(graph).encode(), options)
        self._run_options = api.make("CreateRunOptions")
        api.call("AddRunConfigEntry", self._run_options, b"disable_synchronize_execution_providers", b"1")
        self.inputs = _read_tensors(api, self._handle, "Input")
        self.outputs = _read_tensors(api, self._handle, "Output")

    def _fail(self, error: OrtError, prefix: str = "") -> NoReturn:
        """Raise the same error, with what it does not say itself."""
        cause = self._ops.take_exception()
        if cause is not None and not isinstance(cause, Exception):
            raise cause from None  # such as KeyboardInterrupt
        said = [text for text in take_messages() if str(error) not in text]
        raise OrtError(". ".join([f"{prefix}{error}", *said])) from cause

    def _open_handle(self) -> int:
        if not self._handle:
            raise ValueError(f"the session of {self.graph} is closed")
        return self._handle


class OrtBinding:
    """Where the inputs and outputs of a session lie. The memory is the caller's, and must stay while they are bound.

    On a device, it must be memory of that device: ONNX Runtime copies an input from elsewhere while it is bound, and
    does not look at it again.
    """

    def __init__(self, session: OrtSession, session_handle: int) -> None:
        """Made by OrtSession.new_binding."""
        self._session = session
        self._tensors = {
            "Input": {info.name: info for info in session.inputs},
            "Output": {info.name: info for info in session.outputs},
        }
        self._bound: dict[tuple[str, str], tuple[int, int, tuple[int, ...]]] = {}
        """(kind, name) -> the OrtValue *, its address and shape."""
        self.handle = session.api.make("CreateIoBinding", session_handle)

    def bind_input(self, name: str, address: int, shape: Sequence[int]) -> None:
        """Instead of what was bound to that name. Raises ValueError where the graph has no such input."""
        self._bind("Input", name, address, shape)

    def bind_output(self, name: str, address: int, shape: Sequence[int]) -> None:
        """Instead of what was bound to that name. Raises ValueError where the graph has no such output."""
        self._bind("Output", name, address, shape)

    def check_complete(self) -> None:
        """Raises ValueError where a tensor is not bound, or the binding is closed."""
        if not self.handle:
            raise ValueError(f"the binding of {self._session.graph} is closed")
        if len(self._bound) < sum(map(len, self._tensors.values())):
            missing = [
                f"{kind.lower()} {name}"
                for kind, infos in self._tensors.items()
                for name in infos
                if (kind, name) not in self._bound
            ]
            raise ValueError(f"{self._session.graph}: not bound: {', '.join(missing)}")

    def close(self) -> None:
        """Closing twice is harmless."""
        handle, self.handle = self.handle, 0
        self._session.api.release("IoBinding", handle)
        bound, self._bound = self._bound, {}
        for value, _, _ in bound.values():
            self._session.api.release("Value", value)
        self._session.forget(self)

    def _bind(self, kind: str, name: str, address: int, shape: Sequence[int]) -> None:
        shape = tuple(shape)
        old_value, *old_place = self._bound.get((kind, name), (0, 0, None))
        if old_place == [address, shape]:
            return
        if not self.handle:
            raise ValueError(f"the binding of {self._session.graph} is closed")
        value = self._make_value(self._find(kind, name), kind.lower(), address, shape)
        api = self._session.api
        try:
            api.call(f"Bind{kind}", self.handle, name.encode(), value)
        except OrtError as error:
            api.release("Value", value)
            raise OrtError(f"{kind.lower()} {name}: {error}") from None
        self._bound[kind, name] = (value, address, shape)
        api.release("Value", old_value)

    def _find(self, kind: str, name: str) -> TensorInfo:
        infos = self._tensors[kind]
        if name not in infos:
            raise ValueError(f"{self._session.graph} has no {kind.lower()} {name!r}; it has {', '.join(infos)}")
        return infos[name]

    def _make_value(self, info: TensorInfo, kind: str, address: int, shape: tuple[int, ...]) -> int:
        if not info.accepts(shape):
            expected = tuple("any" if size == -1 else size for size in info.shape)
            raise ValueError(f"{kind} {info.name}: shape {shape} does not fit {_text(expected)}")
        size_bytes = info.size_bytes(shape)
        if not address and size_bytes:
            raise ValueError(f"{kind} {info.name}: the address is 0, for {size_bytes} bytes")
        dims = (c_int64 * len(shape))(*shape)
        create = "CreateTensorWithDataAsOrtValue"
        return self._session.api.make(
            create, self._session.memory_info, address, size_bytes, dims, len(shape), info.element_type
        )


def _append_cuda(api: OrtApi, session_options: int, provider: Provider) -> None:
    with _released(api, "CUDAProviderOptions", api.make("CreateCUDAProviderOptions")) as cuda_options:
        settings = {"device_id": str(provider.ordinal), **provider.options}
        keys = (c_char_p * len(settings))(*(key.encode() for key in settings))
        values = (c_char_p * len(settings))(*(value.encode() for value in settings.values()))
        api.call("UpdateCUDAProviderOptions", cuda_options, keys, values, len(settings))
        if stream := settings.get("user_compute_stream"):
            # Not every version takes the text as the wish to use the stream.
            api.call("UpdateCUDAProviderOptionsWithValue", cuda_options, b"user_compute_stream", int(stream))
        api.call("SessionOptionsAppendExecutionProvider_CUDA_V2", session_options, cuda_options)


def _read_tensors(api: OrtApi, session: int, kind: str) -> tuple[TensorInfo, ...]:
    """`kind`: Input or Output."""
    count = c_size_t()
    api.call(f"SessionGet{kind}Count", session, byref(count))
    return tuple(_read_tensor(api, session, kind, index) for index in range(count.value))


def _read_tensor(api: OrtApi, session: int, kind: str, index: int) -> TensorInfo:
    allocator = api.make("GetAllocatorWithDefaultOptions")
    text = api.make(f"SessionGet{kind}Name", session, index, allocator)
    name = string_at(text).decode("utf-8", "replace")
    api.call("AllocatorFree", allocator, text)
    with _released(api, "TypeInfo", api.make(f"SessionGet{kind}TypeInfo", session, index)) as type_info:
        info = api.make("CastTypeInfoToTensorInfo", type_info)  # belongs to type_info
        element_type, rank = c_int(), c_size_t()
        if info:
            api.call("GetTensorElementType", info, byref(element_type))
        if element_type.value not in ElementType.__members__.values():
            what = f"of ONNX's element type {element_type.value}" if info else "no tensor"
            raise OrtError(f"{kind.lower()} {name} is {what}, which is not supported")
        api.call("GetDimensionsCount", info, byref(rank))
        dims = (c_int64 * rank.value)()
        api.call("GetDimensions", info, dims, rank.value)
        symbols = (c_char_p * rank.value)()  # whose texts belong to type_info
        api.call("GetSymbolicDimensions", info, symbols, rank.value)
        names = tuple((symbol or b"").decode("utf-8", "replace") for symbol in symbols)
        return TensorInfo(name, ElementType(element_type.value), tuple(dims), names)


@contextmanager
def _released(api: OrtApi, kind: str, handle: int) -> Iterator[int]:
    try:
        yield handle
    finally:
        api.release(kind, handle)


def _text(shape: Sequence[Any]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
