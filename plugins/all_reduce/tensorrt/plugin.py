"""AllReduce as a plugin: x and y [T, F] of 16 bits.

A short sum goes through the ranks' mailboxes, by one kernel that adds up in fp32 in the order of ranks and rounds once,
which is the op's reference for inputs and outputs of 16 bits. A longer one, and any where ranks do not see each other's
memory, is NCCL's, which adds up in an order of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from numpy.typing import NDArray

from precast.plugins.all_reduce import schema
from precast.plugins.collectives.device.group import DeviceGroup
from precast.plugins.collectives.device.one_shot import fits_one_shot, one_shot_launch
from precast.plugins.collectives.tensorrt.num_ranks import check_num_ranks
from precast.plugins.device.launcher import Launcher
from precast.plugins.device.launcher import open_launcher as open_launcher_on_device
from precast.plugins.tensorrt.fields import check_dtype, field_types, from_arrays, to_array
from precast.plugins.tensorrt.kernel_sets import KERNELS_SHA256, KernelSet, KernelSets, OpenLauncher
from precast.plugins.tensorrt.plugin_base import (
    PluginCall,
    half_type,
    has_type,
    make_plugin_base,
    make_plugin_creator,
)


@dataclass(frozen=True)
class AllReduceFields:
    """The op's attribute, and the dtype of x and y. Raises ValueError where they make no sense."""

    num_ranks: int
    dtype: str

    def __post_init__(self) -> None:
        schema.AllReduceAttributes(self.num_ranks)
        check_dtype(schema.NAME, self.dtype)


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

        def run(self, call: PluginCall) -> None:
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


def run_all_reduce(
    plugin_fields: AllReduceFields,
    group: DeviceGroup,
    launcher: Callable[[], Launcher],
    num_elements: int,
    x: int,
    y: int,
    stream: int,
) -> None:
    """Enqueue a sum. Which way it goes follows from what is equal on all ranks, so they all go the same.

    Args:
        launcher: Of the plugin's kernels; asked only if they are used.
        x, y: Device addresses, multiples of 16.

    Raises:
        DeviceError, GroupError: the driver or NCCL refused.
        ValueError: the group has another number of ranks than the plan.
    """
    check_num_ranks(schema.NAME, plugin_fields.num_ranks, group)
    mailboxes = group.mailboxes
    if mailboxes is None or not fits_one_shot(num_elements):
        group.all_reduce(x, y, num_elements, plugin_fields.dtype, stream)
        return
    addresses = {"x": x, "y": y, "mailboxes": mailboxes.table, "calls": mailboxes.calls, "missing": mailboxes.missing}
    launcher().launch(one_shot_launch(num_elements, group.tensor_rank, mailboxes.timeout_ms), addresses, stream)
