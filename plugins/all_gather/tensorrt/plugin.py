"""AllGather as a plugin: x [R, L] -> y [N, R, L], of 16 bits, on every rank.

NCCL joins whole messages, so ranks lie one behind the other: y[r] is x of tensor rank r. The builder adds what makes
the op's [R, F] of it, in operators of ONNX (builder/backends/tensorrt/lowering/lower_collectives.py). So `root` is -1.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from numpy.typing import NDArray

from precast.plugins.all_gather import schema
from precast.plugins.collectives.device.group import DeviceGroup
from precast.plugins.collectives.tensorrt.num_ranks import check_num_ranks
from precast.plugins.tensorrt.fields import check_dtype, field_types, from_arrays, to_array
from precast.plugins.tensorrt.plugin_base import half_type, has_type, make_plugin_base, make_plugin_creator


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
    """The creator of the op's plugins.

    Args:
        trt: The module.
        group: For plugins that run, each time.
        errors: Sentences, the first of which is the cause of what TensorRT then says in its own words.
    """
    base: Any = make_plugin_base(trt, schema, errors)
    types = field_types(AllGatherFields)

    class AllGatherPlugin(base):  # type: ignore[misc]  # made for the module
        def __init__(self, plugin_fields: AllGatherFields) -> None:
            super().__init__(num_outputs=1)
            self._fields = plugin_fields

        def clone(self) -> "AllGatherPlugin":
            return AllGatherPlugin(self._fields)

        def to_arrays(self) -> dict[str, NDArray[Any]]:
            return {name: to_array(value) for name, value in asdict(self._fields).items()}

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
            check_num_ranks(schema.NAME, self._fields.num_ranks, found)
            rows, columns = shapes[0]
            found.all_gather(inputs[0], outputs[0], rows * columns, self._fields.dtype, stream)

    def make(arrays: Mapping[str, NDArray[Any]]) -> AllGatherPlugin:
        return AllGatherPlugin(AllGatherFields(**from_arrays(schema.NAME, types, arrays)))

    return make_plugin_creator(trt, schema, types, make, errors)
