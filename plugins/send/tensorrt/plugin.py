"""Send as a plugin: x [T, F] of 16 bits -> rows, int32 [1].

On a GPU it ends when the next stage has taken x, unless NCCL has room for it: a stage is ahead of the next by no more
than what NCCL buffers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from numpy.typing import NDArray

from precast.plugins.collectives.device.group import DeviceGroup
from precast.plugins.send import schema
from precast.plugins.tensorrt.fields import check_dtype, field_types, from_arrays, to_array
from precast.plugins.tensorrt.plugin_base import half_type, has_type, make_plugin_base, make_plugin_creator


@dataclass(frozen=True)
class SendFields:
    """The dtype of x. Raises ValueError where there is no such."""

    dtype: str

    def __post_init__(self) -> None:
        check_dtype(schema.NAME, self.dtype)


def make_creator(trt: Any, group: Callable[[], DeviceGroup], errors: list[str]) -> Any:
    """The creator of the op's plugins.

    Args:
        trt: The module.
        group: For plugins that run, each time.
        errors: Sentences, the first of which is the cause of what TensorRT then says in its own words.
    """
    base: Any = make_plugin_base(trt, schema, errors)
    types = field_types(SendFields)

    class SendPlugin(base):  # type: ignore[misc]  # made for the module
        def __init__(self, plugin_fields: SendFields) -> None:
            super().__init__(num_outputs=1)
            self._fields = plugin_fields

        def clone(self) -> "SendPlugin":
            return SendPlugin(self._fields)

        def to_arrays(self) -> dict[str, NDArray[Any]]:
            return {name: to_array(value) for name, value in asdict(self._fields).items()}

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

        def run(
            self,
            shapes: Sequence[Sequence[int]],
            inputs: Sequence[int],
            outputs: Sequence[int],
            workspace_address: int,
            stream: int,
        ) -> None:
            del workspace_address
            found = group()
            rows, features = shapes[0]
            found.send(inputs[0], rows * features, self._fields.dtype, stream)
            found.write_int32(outputs[0], rows, stream)

    def make(arrays: Mapping[str, NDArray[Any]]) -> SendPlugin:
        return SendPlugin(SendFields(**from_arrays(schema.NAME, types, arrays)))

    return make_plugin_creator(trt, schema, types, make, errors)
