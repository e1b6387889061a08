"""Receive as a plugin: token_ids int32 [T] -> y [T, F] of 16 bits.

That the stage before sends as many rows is not checked on a GPU: all stages run the same steps.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from numpy.typing import NDArray

from precast.plugins.collectives.device.group import DeviceGroup
from precast.plugins.receive import schema
from precast.plugins.tensorrt.fields import check_dtype, field_types, from_arrays, to_array
from precast.plugins.tensorrt.plugin_base import half_type, has_type, make_plugin_base, make_plugin_creator


@dataclass(frozen=True)
class ReceiveFields:
    """The op's attribute, and the dtype of y. Raises ValueError where they make no sense."""

    num_features: int
    dtype: str

    def __post_init__(self) -> None:
        schema.ReceiveAttributes(self.num_features)
        check_dtype(schema.NAME, self.dtype)


def make_creator(trt: Any, group: Callable[[], DeviceGroup], errors: list[str]) -> Any:
    """The creator of the op's plugins.

    Args:
        trt: The module.
        group: For plugins that run, each time.
        errors: Sentences, the first of which is the cause of what TensorRT then says in its own words.
    """
    base: Any = make_plugin_base(trt, schema, errors)
    types = field_types(ReceiveFields)

    class ReceivePlugin(base):  # type: ignore[misc]  # made for the module
        def __init__(self, plugin_fields: ReceiveFields) -> None:
            super().__init__(num_outputs=1)
            self._fields = plugin_fields

        def clone(self) -> "ReceivePlugin":
            return ReceivePlugin(self._fields)

        def to_arrays(self) -> dict[str, NDArray[Any]]:
            return {name: to_array(value) for name, value in asdict(self._fields).items()}

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

        def run(
            self,
            shapes: Sequence[Sequence[int]],
            inputs: Sequence[int],
            outputs: Sequence[int],
            workspace_address: int,
            stream: int,
        ) -> None:
            del inputs, workspace_address
            num_elements = shapes[0][0] * self._fields.num_features
            group().receive(outputs[0], num_elements, self._fields.dtype, stream)

    def make(arrays: Mapping[str, NDArray[Any]]) -> ReceivePlugin:
        return ReceivePlugin(ReceiveFields(**from_arrays(schema.NAME, types, arrays)))

    return make_plugin_creator(trt, schema, types, make, errors)
