"""AllGather as a plugin: x [R, L] -> y [N, R, L], of 16 bits, on every rank.

NCCL joins whole messages, so ranks lie one behind the other: y[r] is x of tensor rank r. The builder adds what makes
the op's [R, F] of it, in operators of ONNX (builder/backends/tensorrt/lowering/lower_collectives.py). So `root` is -1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from precast.plugins.all_gather import schema
from precast.plugins.collectives.device.group import DeviceGroup
from precast.plugins.collectives.tensorrt.num_ranks import check_num_ranks
from precast.plugins.tensorrt.fields import check_dtype
from precast.plugins.tensorrt.plugin_base import (
    PluginCall,
    half_type,
    has_type,
    make_fields_creator,
    make_fields_plugin_base,
)


@dataclass(frozen=True)
class AllGatherFields:
    """The op's attributes, and the dtype of x and y. Raises ValueError where they make no sense."""

    num_ranks: int
    num_features: int
    root: int
    dtype: str

    def __post_init__(self) -> None:
        schema.AllGatherAttributes(self.num_ranks, self.num_features, self.root)
        if self.root != schema.EVERY_RANK:
            raise ValueError(
                f"AllGather: root is {self.root}; the plugin gives every rank the rows, {schema.EVERY_RANK}"
            )
        check_dtype(schema.NAME, self.dtype)


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

        def run(self, call: PluginCall) -> None:
            found = group()
            check_num_ranks(schema.NAME, self._fields.num_ranks, found)
            rows, columns = call.shapes[0]
            found.all_gather(call.inputs[0], call.outputs[0], rows * columns, self._fields.dtype, call.stream)

    return make_fields_creator(trt, schema, AllGatherFields, AllGatherPlugin, errors)
