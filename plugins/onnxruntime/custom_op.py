"""Custom ops of ONNX Runtime that are written in Python.

ONNX Runtime calls them from C, which knows no Python exceptions: one becomes the status that the session then fails
with, as "<node name>: <message>". Its text is added to a list of errors, and the first exception itself is kept for
whoever runs the session.
"""

import ctypes
import itertools
from collections.abc import Callable, Mapping
from ctypes import byref
from dataclasses import dataclass, field
from typing import Any

from precast.plugins.onnxruntime.op_node import Attributes, AttributeType, DeviceOp, NodeInfo, OpNode
from precast.plugins.onnxruntime.ort_abi import (
    API_VERSION,
    DEFAULT_MEMORY,
    INPUT_OUTPUT_OPTIONAL,
    INPUT_OUTPUT_REQUIRED,
    ElementType,
    OrtApi,
    OrtCustomOp,
)

CUDA_PROVIDER = "CUDAExecutionProvider"
_NEWEST_VERSION = 2**31 - 1  # of a domain

MakeOp = Callable[[Attributes], DeviceOp]
"""What a node's op is, from the node's attributes. Raises where they make no sense."""


@dataclass(frozen=True)
class OpSchema:
    """What ONNX Runtime must know of an op before it makes nodes.

    Attributes:
        name: As nodes have it. A name may be given again with other element types.
        inputs, outputs: Their element types, in order.
        num_optional_inputs, num_optional_outputs: How many of the last ones a node may leave out.
        attributes: Those that a node must have.
        optional_attributes: Those that it may have. The bytes of a text attribute may be anything, zeros included.
    """

    name: str
    inputs: tuple[ElementType, ...]
    outputs: tuple[ElementType, ...]
    num_optional_inputs: int = 0
    num_optional_outputs: int = 0
    attributes: Mapping[str, AttributeType] = field(default_factory=dict)
    optional_attributes: Mapping[str, AttributeType] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.num_optional_inputs <= len(self.inputs):
            raise ValueError(f"{self.name}: {self.num_optional_inputs} of {len(self.inputs)} inputs are optional")
        if not 0 <= self.num_optional_outputs <= len(self.outputs):
            raise ValueError(f"{self.name}: {self.num_optional_outputs} of {len(self.outputs)} outputs are optional")


class CustomOps:
    """A domain of ops. It must live as long as sessions that use it, which keep it; closing it only keeps further
    sessions from using it.

    Args:
        api: Of the sessions.
        domain: The ops' domain, as nodes have it.
        provider: The execution provider whose memory the ops work in.
        workspace: A device address of at least that many bytes, good for the run that asks. Raises where there is none.
        stream: The handle of the stream that sessions run on.
        errors: Gets a sentence for each exception, the first of which is the cause of what ONNX Runtime then says.
        check_stream: Whether each node's first run compares that stream with the one that ONNX Runtime runs on; None:
            where the provider is CUDA.
    """

    def __init__(
        self,
        api: OrtApi,
        domain: str,
        provider: str,
        workspace: Callable[[int], int],
        stream: Callable[[], int],
        errors: list[str] | None = None,
        check_stream: bool | None = None,
    ) -> None:
        self.api = api
        self.domain = domain
        self.provider = provider
        self.workspace = workspace
        self.stream = stream
        self.errors: list[str] = [] if errors is None else errors
        self.check_stream = provider == CUDA_PROVIDER if check_stream is None else check_stream
        self._exception: BaseException | None = None
        self._ops: list[_RegisteredOp] = []
        self._handle = api.make("CreateCustomOpDomain", domain.encode())

    def add(self, schema: OpSchema, make: MakeOp) -> None:
        """Make an op known to sessions that are opened from now on."""
        op = _RegisteredOp(self, schema, make)
        self.api.call("CustomOpDomain_Add", self._open_handle(), byref(op.struct))
        self._ops.append(op)

    def add_to(self, session_options: int) -> None:
        """`session_options`: an OrtSessionOptions *."""
        self.api.call("AddCustomOpDomain", session_options, self._open_handle())

    def take_exception(self) -> BaseException | None:
        """The first exception since this was asked last."""
        exception, self._exception = self._exception, None
        return exception

    def fail(self, node: str, exception: BaseException) -> int:
        """Keep what went wrong. Returns the status for ONNX Runtime."""
        text = f"{node}: {_describe(exception)}"
        self.errors.append(text)
        if self._exception is None:
            self._exception = exception
        return self.api.make_status(text)

    @property
    def num_nodes(self) -> int:
        """Of all sessions that are open."""
        return sum(len(op.nodes) for op in self._ops)

    def close(self) -> None:
        """Closing twice is harmless."""
        handle, self._handle = self._handle, 0
        self.api.release("CustomOpDomain", handle)

    def _open_handle(self) -> int:
        if not self._handle:
            raise ValueError(f"the ops of the domain {self.domain} are closed")
        return self._handle


class _RegisteredOp:
    """An op as ONNX Runtime sees it: a struct of callbacks, which neither moves nor goes while sessions use it."""

    def __init__(self, ops: CustomOps, schema: OpSchema, make: MakeOp) -> None:
        self._ops = ops
        self._schema = schema
        self._make = make
        self._name = ctypes.create_string_buffer(schema.name.encode())
        self._provider = ctypes.create_string_buffer(ops.provider.encode())
        self._ids = itertools.count(1)
        self.nodes: dict[int, OpNode] = {}
        """By the number that is the node's address to ONNX Runtime."""
        self.struct = OrtCustomOp(version=API_VERSION, **self._make_callbacks())

    def _make_callbacks(self) -> dict[str, Any]:
        schema = self._schema
        functions = {
            "GetName": lambda _: ctypes.addressof(self._name),
            "GetExecutionProviderType": lambda _: ctypes.addressof(self._provider),
            "GetInputType": lambda _, index: schema.inputs[index],
            "GetInputTypeCount": lambda _: len(schema.inputs),
            "GetOutputType": lambda _, index: schema.outputs[index],
            "GetOutputTypeCount": lambda _: len(schema.outputs),
            "GetInputCharacteristic": lambda _, index: _kind(index, schema.inputs, schema.num_optional_inputs),
            "GetOutputCharacteristic": lambda _, index: _kind(index, schema.outputs, schema.num_optional_outputs),
            "GetInputMemoryType": lambda *_: DEFAULT_MEMORY,
            "GetVariadicInputMinArity": lambda _: 0,
            "GetVariadicInputHomogeneity": lambda _: 0,
            "GetVariadicOutputMinArity": lambda _: 0,
            "GetVariadicOutputHomogeneity": lambda _: 0,
            "GetStartVersion": lambda _: 1,
            "GetEndVersion": lambda _: _NEWEST_VERSION,
            "CreateKernelV2": self._create_node,
            "KernelComputeV2": self._run_node,
            "KernelDestroy": self._destroy_node,
        }
        types: dict[str, Any] = dict(OrtCustomOp._fields_)
        self._callbacks = {name: types[name](function) for name, function in functions.items()}  # C does not keep them
        return self._callbacks

    def _create_node(self, op: int, api: int, info: int, out: Any) -> int | None:
        del op, api
        out[0] = None
        name = self._schema.name
        try:
            node_info = NodeInfo(self._ops.api, info)
            name = node_info.name or name
            attributes = node_info.read_attributes(self._schema.attributes, self._schema.optional_attributes)
            node = OpNode(
                name,
                self._make(attributes),
                self._ops.api,
                (len(self._schema.inputs), node_info.num_inputs),
                (len(self._schema.outputs), node_info.num_outputs),
                self._ops.workspace,
                self._ops.stream,
                self._ops.check_stream,
            )
            node_id = next(self._ids)
            self.nodes[node_id] = node
            out[0] = node_id
        except BaseException as exception:  # noqa: BLE001 - must not cross C; the session raises it again
            return self._ops.fail(name, exception)
        return None

    def _run_node(self, node_id: int, context: int) -> int | None:
        name = self._schema.name
        try:
            node = self.nodes[node_id]
            name = node.name
            node.run(context)
        except BaseException as exception:  # noqa: BLE001 - must not cross C; the session raises it again
            return self._ops.fail(name, exception)
        return None

    def _destroy_node(self, node_id: int) -> None:
        self.nodes.pop(node_id, None)


def _kind(index: int, tensors: tuple[ElementType, ...], num_optional: int) -> int:
    return INPUT_OUTPUT_REQUIRED if index < len(tensors) - num_optional else INPUT_OUTPUT_OPTIONAL


def _describe(exception: BaseException) -> str:
    try:
        return str(exception) or type(exception).__name__
    except Exception:  # noqa: BLE001 - a failure to describe a failure
        return type(exception).__name__
