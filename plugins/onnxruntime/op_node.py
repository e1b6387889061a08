"""One node of a graph whose op is written in Python: what it is made from, and its runs."""

import ctypes
from collections.abc import Callable, Mapping, Sequence
from ctypes import byref, c_float, c_int64, c_size_t, c_void_p
from typing import Any, Protocol

from precast.plugins.device.op_call import OpCall
from precast.plugins.onnxruntime.ort_abi import OrtApi, OrtError

AttributeType = type[int] | type[float] | type[str] | type[bytes]
Attributes = Mapping[str, int | float | str | bytes]
Shapes = Sequence[Sequence[int]]
MAX_RANK = 16


class DeviceOp(Protocol):
    """What an op does for one node. Shapes are those of all inputs of the schema; () for one that the node leaves out.

    Shapes of outputs and the size of the workspace must follow from the shapes of inputs alone: they are asked again
    only where those change.
    """

    def output_shapes(self, shapes: Shapes, /) -> Shapes:
        """One for each output of the schema."""

    def workspace_bytes(self, shapes: Shapes, /) -> int: ...

    def run(self, call: OpCall, /) -> None:
        """Enqueue the work on the call's stream. An input or output that the node leaves out has the address 0."""


class NodeInfo:
    """What ONNX Runtime tells of a node while it makes it; valid until the callback that got it returns."""

    def __init__(self, api: OrtApi, info: int) -> None:
        self._api = api
        self._info = info

    @property
    def name(self) -> str:
        return self._read_text("KernelInfo_GetNodeName").decode("utf-8", "replace")

    @property
    def num_inputs(self) -> int:
        """Up to the last one that is not left out."""
        return self._count("KernelInfo_GetInputCount")

    @property
    def num_outputs(self) -> int:
        return self._count("KernelInfo_GetOutputCount")

    def read_attributes(
        self, required: Mapping[str, AttributeType], optional: Mapping[str, AttributeType]
    ) -> dict[str, int | float | str | bytes]:
        """Raises ValueError where one is missing, or of another type."""
        attributes: dict[str, int | float | str | bytes] = {}
        for name, kind in {**required, **optional}.items():
            value = self._read(name, kind)
            if value is not None:
                attributes[name] = value
            elif other := next((other for other in (int, float, bytes) if self._read(name, other) is not None), None):
                raise ValueError(f"the attribute {name} is of type {_name(other)}, not {_name(kind)}")
            elif name in required:
                raise ValueError(f"the attribute {name} ({_name(kind)}) is missing")
        return attributes

    def _read(self, name: str, kind: AttributeType) -> int | float | str | bytes | None:
        """None where the node has no such attribute of this type."""
        key = name.encode()
        try:
            if kind is int:
                number = c_int64()
                self._api.call("KernelInfoGetAttribute_int64", self._info, key, byref(number))
                return number.value
            if kind is float:
                real = c_float()
                self._api.call("KernelInfoGetAttribute_float", self._info, key, byref(real))
                return real.value
            data = self._read_text("KernelInfoGetAttribute_string", key)
        except OrtError:
            return None
        return data.decode("utf-8") if kind is str else data

    def _read_text(self, function: str, *arguments: Any) -> bytes:
        """The bytes, which may have zeros, without the zero that ONNX Runtime adds."""
        size = c_size_t()
        self._api.call(function, self._info, *arguments, None, byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._api.call(function, self._info, *arguments, buffer, byref(size))
        return buffer.raw[: size.value - 1]

    def _count(self, function: str) -> int:
        count = c_size_t()
        self._api.call(function, self._info, byref(count))
        return count.value


class ContextReader:
    """Reads what ONNX Runtime gives a node for a run, in as few calls as there are: this is the host's share of each
    node of each step. Objects that C writes to are made once, so one thread at a time runs the nodes that share it.
    """

    def __init__(self, api: OrtApi) -> None:
        self.api = api
        self._get_input = api.quick_function("KernelContext_GetInput")
        self._get_output = api.function("KernelContext_GetOutput")  # it may allocate
        self._get_data = api.quick_function("GetTensorMutableData")
        self._get_info = api.quick_function("GetTensorTypeAndShape")
        self._get_rank = api.quick_function("GetDimensionsCount")
        self._get_dims = api.quick_function("GetDimensions")
        self._release_info = api.quick_function("ReleaseTensorTypeAndShapeInfo")
        self._context, self._value, self._info, self._data = c_void_p(), c_void_p(), c_void_p(), c_void_p()
        self._value_out, self._info_out, self._data_out = byref(self._value), byref(self._info), byref(self._data)
        self._rank = c_size_t()
        self._rank_out = byref(self._rank)
        self._dims = (c_int64 * MAX_RANK)()

    def read_inputs(self, context: int, indices: Sequence[c_size_t]) -> tuple[list[int], list[tuple[int, ...]]]:
        """Addresses and shapes; 0 and () for an input that is left out."""
        addresses: list[int] = []
        shapes: list[tuple[int, ...]] = []
        self._context.value = context
        value, info, rank, dims = self._value, self._info, self._rank, self._dims
        get_data, get_info, get_rank, get_dims = self._get_data, self._get_info, self._get_rank, self._get_dims
        for index in indices:
            status = self._get_input(self._context, index, self._value_out)
            if not status and value.value is None:
                addresses.append(0)
                shapes.append(())
                continue
            if status := status or get_data(value, self._data_out) or get_info(value, self._info_out):
                raise self.api.take_error(status)
            status = get_rank(info, self._rank_out)
            num_dims = rank.value
            if not status and num_dims <= MAX_RANK:
                status = get_dims(info, dims, rank)
            self._release_info(info)
            if status:
                raise self.api.take_error(status)
            if num_dims > MAX_RANK:
                raise ValueError(f"input {index.value} has {num_dims} dimensions; at most {MAX_RANK} are read")
            addresses.append(self._data.value or 0)
            shapes.append(tuple(dims[:num_dims]))
        return addresses, shapes

    def make_outputs(self, context: int, outputs: Sequence[tuple[int, Any, int]]) -> list[int]:
        """Addresses of outputs of these (index, dimensions, rank); 0 for one that the node leaves out."""
        addresses: list[int] = []
        for index, dims, rank in outputs:
            self._check(self._get_output(context, index, dims, rank, self._value_out))
            if self._value.value is None:
                addresses.append(0)
                continue
            self._check(self._get_data(self._value, self._data_out))
            addresses.append(self._data.value or 0)
        return addresses

    def compute_stream(self, context: int) -> int:
        return self.api.make("KernelContext_GetGPUComputeStream", context)

    def _check(self, status: int | None) -> None:
        if status:
            raise self.api.take_error(status)


class OpNode:
    """A node. One thread at a time runs it.

    Args:
        name: What errors call it.
        op: What it does.
        api: Of the session.
        num_inputs, num_outputs: Of the schema, then of the node, which may leave some out at the end.
        workspace: A device address of that many bytes, good for the run that asks.
        stream: Of the run.
        check_stream: Whether the first run makes sure that ONNX Runtime's stream is that one.
    """

    def __init__(
        self,
        name: str,
        op: DeviceOp,
        api: OrtApi,
        num_inputs: tuple[int, int],
        num_outputs: tuple[int, int],
        workspace: Callable[[int], int],
        stream: Callable[[], int],
        check_stream: bool,
    ) -> None:
        self.name = name
        self._op = op
        self._reader = ContextReader(api)
        self._indices = tuple(c_size_t(index) for index in range(num_inputs[1]))
        self._num_missing_inputs = num_inputs[0] - num_inputs[1]
        self._num_outputs = num_outputs
        self._workspace = workspace
        self._stream = stream
        self._check_stream = check_stream
        # What follows from the shapes of the last run.
        self._shapes: tuple[tuple[int, ...], ...] | None = None
        self._outputs: list[tuple[int, Any, int]] = []
        self._workspace_bytes = 0

    def run(self, context: int) -> None:
        """`context`: an OrtKernelContext *."""
        inputs, shape_list = self._reader.read_inputs(context, self._indices)
        if self._num_missing_inputs:
            inputs += [0] * self._num_missing_inputs
            shape_list += [()] * self._num_missing_inputs
        shapes = tuple(shape_list)
        if shapes != self._shapes:
            self._use_shapes(shapes)
        outputs = self._reader.make_outputs(context, self._outputs)
        outputs += [0] * (self._num_outputs[0] - len(outputs))
        stream = self._stream()
        if self._check_stream:
            self._refuse_another_stream(self._reader.compute_stream(context), stream)
        workspace_address = self._workspace(self._workspace_bytes) if self._workspace_bytes else 0
        self._op.run(OpCall(shapes, inputs, outputs, workspace_address, stream))

    def _use_shapes(self, shapes: tuple[tuple[int, ...], ...]) -> None:
        output_shapes = self._op.output_shapes(shapes)
        if len(output_shapes) != self._num_outputs[0]:
            raise ValueError(f"the op gives {len(output_shapes)} output shapes; its schema has {self._num_outputs[0]}")
        self._workspace_bytes = self._op.workspace_bytes(shapes)
        self._outputs = [
            (index, (c_int64 * len(shape))(*shape), len(shape))
            for index, shape in enumerate(output_shapes[: self._num_outputs[1]])
        ]
        self._shapes = shapes

    def _refuse_another_stream(self, theirs: int, ours: int) -> None:
        if theirs != ours:
            raise RuntimeError(
                f"ONNX Runtime runs the node on the CUDA stream {theirs:#x}, not on {ours:#x}: "
                "the provider option user_compute_stream is missing or has no effect"
            )
        self._check_stream = False


def _name(kind: AttributeType) -> str:
    return kind.__name__
