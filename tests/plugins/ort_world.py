"""A tiny world for ONNX Runtime in Python: graphs of single ops, which compute with NumPy on the CPU's own addresses.

PRECAST_ONNXRUNTIME names another libonnxruntime.so than the installed package's, such as the oldest supported one.
"""

import ctypes
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_dtypes import bfloat16
from numpy.typing import NDArray
from onnx import NodeProto, helper

from precast.plugins.device.op_call import OpCall
from precast.plugins.onnxruntime.custom_op import CustomOps, OpSchema
from precast.plugins.onnxruntime.ort_abi import ElementType, OrtApi
from precast.runtime.library import onnxruntime_path
from precast.runtime.onnxruntime.session import CPU_PROVIDER, OrtBinding, OrtSession, Provider

DOMAIN = "test"
STREAM = 77
CPU = Provider(CPU_PROVIDER, "Cpu")
FLOAT32 = ElementType.FLOAT32
Array = NDArray[Any]
DTYPES: dict[ElementType, Any] = {
    ElementType.FLOAT32: np.float32,
    ElementType.UINT8: np.uint8,
    ElementType.INT8: np.int8,
    ElementType.INT32: np.int32,
    ElementType.INT64: np.int64,
    ElementType.BOOL: np.bool_,
    ElementType.FLOAT16: np.float16,
    ElementType.BFLOAT16: bfloat16,
}


def library() -> Path:
    chosen = os.environ.get("PRECAST_ONNXRUNTIME")
    path = Path(chosen) if chosen else onnxruntime_path()
    assert path is not None
    return path


@functools.cache
def open_api() -> OrtApi:
    return OrtApi(library())


def view(address: int, shape: Sequence[int], dtype: Any = np.float32) -> Array:
    """The tensor at an address."""
    size_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if not size_bytes:
        return np.zeros(shape, dtype)
    return np.frombuffer((ctypes.c_char * size_bytes).from_address(address), dtype).reshape(shape)


class NumpyOp:
    """An op whose outputs have the first input's shape, or what `shapes` says. It writes down its calls."""

    def __init__(
        self,
        run: Callable[[OpCall], None],
        shapes: Callable[[Any], Any] = lambda shapes: [shapes[0]],
        workspace_bytes: int = 0,
    ) -> None:
        self._run, self._shapes, self._workspace_bytes = run, shapes, workspace_bytes
        self.calls: list[OpCall] = []

    def output_shapes(self, shapes: Any) -> Any:
        return self._shapes(shapes)

    def workspace_bytes(self, shapes: Any) -> int:
        return self._workspace_bytes

    def run(self, call: OpCall) -> None:
        self.calls.append(call)
        self._run(call)


def negate(call: OpCall) -> None:
    view(call.outputs[0], call.shapes[0])[...] = -view(call.inputs[0], call.shapes[0])


NEGATE = OpSchema("Negate", (FLOAT32,), (FLOAT32,))


def make_ops(**changes: Any) -> CustomOps:
    given: dict[str, Any] = {"provider": CPU_PROVIDER, "workspace": lambda size: 0x1000, "stream": lambda: STREAM}
    return CustomOps(open_api(), DOMAIN, **(given | changes))


Tensor = tuple[ElementType, Sequence[int | str]]
Tensors = Mapping[str, Tensor]


def write_graph(path: Path, nodes: Sequence[NodeProto], inputs: Tensors, outputs: Tensors) -> Path:
    given, made = (
        [helper.make_tensor_value_info(name, element_type, shape) for name, (element_type, shape) in tensors.items()]
        for tensors in (inputs, outputs)
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(helper.make_graph(nodes, "graph", given, made), opset_imports=opsets, ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


def node(
    op: str, inputs: Sequence[str], outputs: Sequence[str], name: str = "the node", **attributes: Any
) -> NodeProto:
    return helper.make_node(op, inputs, outputs, name, domain=DOMAIN, **attributes)


def write_negate(folder: Path, shape: Sequence[int | str] = ("rows", 2)) -> Path:
    """y = Negate(x), by the node "the node"."""
    tensor = (FLOAT32, shape)
    return write_graph(folder / "negate.onnx", [node("Negate", ["x"], ["y"])], {"x": tensor}, {"y": tensor})


def open_session(graph: Path, ops: CustomOps, **changes: Any) -> OrtSession:
    return OrtSession(open_api(), graph, ops, **({"provider": CPU} | changes))


def bind(binding: OrtBinding, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
    """The arrays must live as long as the binding."""
    for name, array in inputs.items():
        binding.bind_input(name, array.ctypes.data, array.shape)
    for name, array in outputs.items():
        binding.bind_output(name, array.ctypes.data, array.shape)


def run(session: OrtSession, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
    binding = session.new_binding()
    bind(binding, inputs, outputs)
    try:
        session.run(binding)
    finally:
        binding.close()
