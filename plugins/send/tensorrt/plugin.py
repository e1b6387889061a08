"""Send as a plugin: x [T, F] of 16 bits -> rows, int32 [1].

On a GPU it ends when the next stage has taken x, unless NCCL has room for it: a stage is ahead of the next by no more
than what NCCL buffers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from precast.plugins.collectives.device.group import DeviceGroup
from precast.plugins.send import schema
from precast.plugins.tensorrt.fields import check_dtype
from precast.plugins.tensorrt.plugin_base import (
    PluginCall,
    half_type,
    has_type,
    make_fields_creator,
    make_fields_plugin_base,
)


@dataclass(frozen=True)
class SendFields:
    """The dtype of x. Raises ValueError where there is no such."""

    dtype: str

    def __post_init__(self) -> None:
        check_dtype(schema.NAME, self.dtype)


def make_creator(trt: Any, group: Callable[[], DeviceGroup], errors: list[str]) -> Any:
    """The creator of the op's plugins; see collectives/tensorrt."""
    base: Any = make_fields_plugin_base(trt, schema, errors)

    class SendPlugin(base):  # type: ignore[misc]  # made for the module
        def get_output_data_types(self, input_types: Sequence[Any]) -> list[Any]:
            del input_types
            return [trt.int32]

        def get_output_shapes(self, inputs: Sequence[Any], shape_inputs: Sequence[Any], exprs: Any) -> list[Any]:
            del inputs, shape_inputs
            output = trt.DimsExprs(1)
            output[0] = exprs.constant(1)
            return [output]

        def supports_format_combination(self, position: int, tensors: Sequence[Any], num_inputs: int) -> bool:
            expected = half_type(trt, self._fields.dtype) if position < num_inputs else trt.int32
            return has_type(trt, tensors[position], expected)

        def run(self, call: PluginCall) -> None:
            found = group()
            rows, features = call.shapes[0]
            found.send(call.inputs[0], rows * features, self._fields.dtype, call.stream)
            found.write_int32(call.outputs[0], rows, call.stream)

    return make_fields_creator(trt, schema, SendFields, SendPlugin, errors)
