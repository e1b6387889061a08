"""AllGather as a plugin."""

from collections.abc import Callable, Sequence
from typing import Any

from precast.plugins.all_gather import schema
from precast.plugins.all_gather.device import AllGatherFields, run_all_gather
from precast.plugins.collectives.device.group import DeviceGroup
from precast.plugins.device.op_call import OpCall
from precast.plugins.tensorrt.plugin_base import (
    half_type,
    has_type,
    make_fields_creator,
    make_fields_plugin_base,
)


def make_creator(trt: Any, group: Callable[[], DeviceGroup], errors: list[str]) -> Any:
    """The creator of the op's plugins; see collectives/tensorrt."""
    base: Any = make_fields_plugin_base(trt, schema, errors)

    class AllGatherPlugin(base):  # type: ignore[misc]  # made for the module
        def get_output_data_types(self, input_types: Sequence[Any]) -> list[Any]:
            return [input_types[0]]

        def get_output_shapes(self, inputs: Sequence[Any], shape_inputs: Sequence[Any], exprs: Any) -> list[Any]:
            del shape_inputs
            output = trt.DimsExprs(3)
            output[0] = exprs.constant(self._fields.num_ranks)
            output[1], output[2] = inputs[0][0], inputs[0][1]
            return [output]

        def supports_format_combination(self, position: int, tensors: Sequence[Any], num_inputs: int) -> bool:
            del num_inputs
            return has_type(trt, tensors[position], half_type(trt, self._fields.dtype))

        def run(self, call: OpCall) -> None:
            run_all_gather(self._fields, group(), call)

    return make_fields_creator(trt, schema, AllGatherFields, AllGatherPlugin, errors)
