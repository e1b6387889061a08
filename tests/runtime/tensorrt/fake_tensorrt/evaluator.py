"""Computes a network with ONNX's reference evaluator, and PagedAttention in NumPy, in place in the pools."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from precast.builder.backends.separate_weights import weights_as_inputs
from tests.builder.tensorrt.lowered_runner import PagedAttention
from tests.runtime.tensorrt.fake_tensorrt.collectives import COLLECTIVES
from tests.runtime.tensorrt.fake_tensorrt.enums import DataType

Array = NDArray[Any]
_POOL = 4
"""PagedAttention's input that is its output 1."""
_TYPES: dict[int, tuple[Any, DataType]] = {
    onnx.TensorProto.FLOAT: (np.float32, DataType.FLOAT),
    onnx.TensorProto.FLOAT16: (np.float16, DataType.HALF),
    onnx.TensorProto.BFLOAT16: (ml_dtypes.bfloat16, DataType.BF16),
    onnx.TensorProto.INT8: (np.int8, DataType.INT8),
    onnx.TensorProto.UINT8: (np.uint8, DataType.UINT8),
    onnx.TensorProto.INT32: (np.int32, DataType.INT32),
    onnx.TensorProto.INT64: (np.int64, DataType.INT64),
    onnx.TensorProto.FLOAT8E4M3FN: (ml_dtypes.float8_e4m3fn, DataType.FP8),
    onnx.TensorProto.INT4: (ml_dtypes.int4, DataType.INT4),
    onnx.TensorProto.FLOAT4E2M1: (ml_dtypes.float4_e2m1fn, DataType.FP4),
}


@dataclass(frozen=True)
class TensorInfo:
    """An input or an output of the network: a dimension is a number, or the name of a size."""

    name: str
    dtype: np.dtype[Any]
    data_type: DataType
    dims: tuple[int | str, ...]

    @property
    def static_shape(self) -> tuple[int, ...] | None:
        sizes = tuple(size for size in self.dims if isinstance(size, int))
        return sizes if len(sizes) == len(self.dims) else None


@dataclass(frozen=True)
class Node:
    """One that a plugin computes."""

    name: str
    op_type: str
    attributes: Mapping[str, Any]


class NetworkEvaluator:
    """One network; its inputs and outputs are those of the engine."""

    def __init__(self, model_bytes: bytes) -> None:
        model = onnx.ModelProto.FromString(model_bytes)
        self.inputs = tuple(_info(value) for value in model.graph.input)
        self.outputs = tuple(_info(value) for value in model.graph.output)
        self.plugin_nodes = tuple(_node(node) for node in model.graph.node if node.domain)
        self.weights_bytes = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
        # As inputs, weights keep dtypes that the evaluator would not give initialisers.
        self._weights = {tensor.name: _array(tensor) for tensor in model.graph.initializer}
        evaluated = onnx.ModelProto.FromString(weights_as_inputs(model_bytes))
        self._evaluator = ReferenceEvaluator(evaluated, new_ops=[PagedAttention, *COLLECTIVES])
        attentions = [node for node in model.graph.node if node.op_type == PagedAttention.__name__]
        self.aliases = {node.output[1]: node.input[_POOL] for node in attentions}

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs by name. Pools among the inputs are written in place."""
        results = self._evaluator.run(None, {**inputs, **self._weights})
        return {info.name: np.asarray(array) for info, array in zip(self.outputs, results, strict=True)}


@functools.lru_cache(maxsize=16)
def evaluator_of(model_bytes: bytes) -> NetworkEvaluator:
    """Engines of the same network share it: making one takes longer than a step."""
    return NetworkEvaluator(model_bytes)


def _info(value: onnx.ValueInfoProto) -> TensorInfo:
    tensor = value.type.tensor_type
    dtype, data_type = _TYPES[tensor.elem_type]
    dims = tuple(dim.dim_param or int(dim.dim_value) for dim in tensor.shape.dim)
    return TensorInfo(value.name, np.dtype(dtype), data_type, dims)


def _node(node: onnx.NodeProto) -> Node:
    attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    return Node(node.name, node.op_type, attributes)


def _array(tensor: onnx.TensorProto) -> Array:
    """The values of an initialiser whose bytes lie in it."""
    dtype, shape = np.dtype(_TYPES[tensor.data_type][0]), tuple(tensor.dims)
    stored = np.frombuffer(tensor.raw_data, np.uint8)
    if tensor.data_type not in (onnx.TensorProto.INT4, onnx.TensorProto.FLOAT4E2M1):
        whole: Array = stored.view(dtype).reshape(shape)
        return whole
    nibbles = np.stack([stored & 0xF, stored >> 4], axis=-1).reshape(-1)[: int(np.prod(shape))].reshape(shape)
    if tensor.data_type == onnx.TensorProto.INT4:
        signed: Array = ((nibbles.astype(np.int8) ^ 8) - 8).astype(dtype)
        return signed
    viewed: Array = nibbles.view(dtype)
    return viewed
