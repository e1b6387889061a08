"""Receive as a plugin."""

from collections.abc import Callable, Sequence
from typing import Any

from precast.plugins.collectives.device.group import DeviceGroup
from precast.plugins.device.op_call import OpCall
from precast.plugins.receive import schema
from precast.plugins.receive.device import ReceiveFields, run_receive
from precast.plugins.tensorrt.plugin_base import (
    half_type,
    has_type,
    make_fields_creator,
    make_fields_plugin_base,
)


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

        def run(self, call: OpCall) -> None:
            run_receive(self._fields, group(), call)

    return make_fields_creator(trt, schema, ReceiveFields, ReceivePlugin, errors)
