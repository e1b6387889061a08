"""Receive as a plugin: token_ids int32 [T] -> y [T, F] of 16 bits.

That the stage before sends as many rows is not checked on a GPU: all stages run the same steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from precast.plugins.collectives.device.group import DeviceGroup
from precast.plugins.receive import schema
from precast.plugins.tensorrt.fields import check_dtype
from precast.plugins.tensorrt.plugin_base import (
    PluginCall,
    half_type,
    has_type,
    make_fields_creator,
    make_fields_plugin_base,
)


@dataclass(frozen=True)
class ReceiveFields:
    """The op's attribute, and the dtype of y. Raises ValueError where they make no sense."""

    num_features: int
    dtype: str

    def __post_init__(self) -> None:
        schema.ReceiveAttributes(self.num_features)
        check_dtype(schema.NAME, self.dtype)


def make_creator(trt: Any, group: Callable[[], DeviceGroup], errors: list[str]) -> Any:
    """The creator of the op's plugins; see collectives/tensorrt."""
    base: Any = make_fields_plugin_base(trt, schema, errors)

    class ReceivePlugin(base):  # type: ignore[misc]  # made for the module
        def get_output_data_types(self, input_types: Sequence[Any]) -> list[Any]:
            del input_types
            return [half_type(trt, self._fields.dtype)]

        def get_output_shapes(self, inputs: Sequence[Any], shape_inputs: Sequence[Any], exprs: Any) -> list[Any]:
            del shape_inputs
            output = trt.DimsExprs(2)
            output[0] = inputs[0][0]
            output[1] = exprs.constant(self._fields.num_features)
            return [output]

        def supports_format_combination(self, position: int, tensors: Sequence[Any], num_inputs: int) -> bool:
            expected = trt.int32 if position < num_inputs else half_type(trt, self._fields.dtype)
            return has_type(trt, tensors[position], expected)

        def run(self, call: PluginCall) -> None:
            num_elements = call.shapes[0][0] * self._fields.num_features
            group().receive(call.outputs[0], num_elements, self._fields.dtype, call.stream)

    return make_fields_creator(trt, schema, ReceiveFields, ReceivePlugin, errors)
