"""AllReduce as a plugin."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from numpy.typing import NDArray

from precast.plugins.all_reduce import schema
from precast.plugins.all_reduce.device import AllReduceFields, run_all_reduce
from precast.plugins.collectives.device.group import DeviceGroup
from precast.plugins.device.kernel_sets import KERNELS_SHA256, KernelSet, KernelSets, OpenLauncher
from precast.plugins.device.launcher import open_launcher as open_launcher_on_device
from precast.plugins.device.op_call import OpCall
from precast.plugins.device.op_fields import field_types, from_arrays, to_array
from precast.plugins.tensorrt.plugin_base import (
    half_type,
    has_type,
    make_plugin_base,
    make_plugin_creator,
)

CompileKernels = Callable[[AllReduceFields], bytes]
"""The kernels of a plugin, as bytes; asked once for each set of equal fields."""


def make_creator(
    trt: Any,
    compile_kernels: CompileKernels,
    group: Callable[[], DeviceGroup],
    errors: list[str],
    open_launcher: OpenLauncher = open_launcher_on_device,
) -> Any:
    """The creator of the op's plugins.

    Args:
        trt: The module.
        compile_kernels: For plugins of new networks.
        group: For plugins that run, each time.
        errors: Sentences, the first of which is the cause of what TensorRT then says in its own words.
        open_launcher: For plugins that run; asked once for each set of kernels.
    """
    base: Any = make_plugin_base(trt, schema, errors)
    kernel_sets = KernelSets(schema.NAME, open_launcher)
    types = field_types(AllReduceFields)

    class AllReducePlugin(base):  # type: ignore[misc]  # made for the module
        def __init__(self, plugin_fields: AllReduceFields, kernels: KernelSet) -> None:
            super().__init__(num_outputs=1)
            self._fields, self._kernels = plugin_fields, kernels

        def clone(self) -> "AllReducePlugin":
            return AllReducePlugin(self._fields, self._kernels)

        def to_arrays(self) -> dict[str, NDArray[Any]]:
            attributes = {name: to_array(value) for name, value in asdict(self._fields).items()}
            return {**attributes, **kernel_sets.to_arrays(self._kernels)}

        def get_output_data_types(self, input_types: Sequence[Any]) -> list[Any]:
            return [input_types[0]]

        def get_output_shapes(self, inputs: Sequence[Any], shape_inputs: Sequence[Any], exprs: Any) -> list[Any]:
            del shape_inputs, exprs
            return [trt.DimsExprs(inputs[0])]

        def supports_format_combination(self, position: int, tensors: Sequence[Any], num_inputs: int) -> bool:
            del num_inputs
            return has_type(trt, tensors[position], half_type(trt, self._fields.dtype))

        def run(self, call: OpCall) -> None:
            rows, features = call.shapes[0]
            kernels = self._kernels
            run_all_reduce(
                self._fields,
                group(),
                lambda: kernel_sets.launcher(kernels),
                rows * features,
                call.inputs[0],
                call.outputs[0],
                call.stream,
            )

    def make(arrays: Mapping[str, NDArray[Any]]) -> AllReducePlugin:
        plugin_fields = AllReduceFields(**from_arrays(schema.NAME, types, arrays))
        if KERNELS_SHA256 in arrays:
            return AllReducePlugin(plugin_fields, kernel_sets.read(arrays))
        kernels = kernel_sets.compile(plugin_fields, lambda: compile_kernels(plugin_fields))
        return AllReducePlugin(plugin_fields, kernels)

    return make_plugin_creator(trt, schema, types, make, errors)
