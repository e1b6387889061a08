"""Send as a plugin."""

from collections.abc import Callable, Sequence
from typing import Any

from precast.plugins.collectives.device.group import DeviceGroup
from precast.plugins.device.op_call import OpCall
from precast.plugins.send import schema
from precast.plugins.send.device import SendFields, run_send
from precast.plugins.tensorrt.plugin_base import (
    half_type,
    has_type,
    make_fields_creator,
    make_fields_plugin_base,
)


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

        def run(self, call: OpCall) -> None:
            run_send(self._fields, group(), call)

    return make_fields_creator(trt, schema, SendFields, SendPlugin, errors)
