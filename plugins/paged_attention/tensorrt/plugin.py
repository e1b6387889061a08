"""The plugin's classes, which derive from those of the TensorRT that is loaded, tensorrt or tensorrt_rtx."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from precast.plugins.device.kernel_sets import KERNELS_SHA256, KernelSet, KernelSets, OpenLauncher
from precast.plugins.device.launcher import open_launcher as open_launcher_on_device
from precast.plugins.device.op_call import OpCall
from precast.plugins.paged_attention import schema
from precast.plugins.paged_attention.device.launches import StepShape, workspace
from precast.plugins.paged_attention.device.op_fields import FIELD_TYPES, HALF_INPUTS, POOL, PluginFields
from precast.plugins.paged_attention.device.run import run_step
from precast.plugins.tensorrt.plugin_base import half_type, has_type, make_plugin_base, make_plugin_creator

CompileKernels = Callable[[PluginFields], bytes]
"""The kernels of a plugin, as bytes; asked once for each set of equal fields."""


def make_creator(
    trt: Any, compile_kernels: CompileKernels, errors: list[str], open_launcher: OpenLauncher = open_launcher_on_device
) -> Any:
    """The creator of the op's plugins, to be registered in TensorRT's registry under PLUGIN_NAMESPACE.

    Args:
        trt: The module.
        compile_kernels: For plugins of new networks.
        errors: Sentences, the first of which is the cause of what TensorRT then says in its own words.
        open_launcher: For plugins that run; asked once for each set of kernels.
    """
    base: Any = make_plugin_base(trt, schema, errors)
    kernel_sets = KernelSets(schema.NAME, open_launcher)

    class PagedAttentionPlugin(base):  # type: ignore[misc]  # made for the module
        def __init__(self, plugin_fields: PluginFields, kernels: KernelSet) -> None:
            super().__init__(num_outputs=2)
            self._fields, self._kernels = plugin_fields, kernels

        def clone(self) -> "PagedAttentionPlugin":
            return PagedAttentionPlugin(self._fields, self._kernels)

        def to_arrays(self) -> dict[str, NDArray[Any]]:
            return {**self._fields.to_arrays(), **kernel_sets.to_arrays(self._kernels)}

        def get_output_data_types(self, input_types: Sequence[Any]) -> list[Any]:
            return [input_types[0], input_types[POOL]]

        def get_output_shapes(self, inputs: Sequence[Any], shape_inputs: Sequence[Any], exprs: Any) -> list[Any]:
            del shape_inputs
            if len(inputs) != self._fields.num_inputs:
                errors.append(f"PagedAttention has {len(inputs)} inputs, its fields say {self._fields.num_inputs}")
                return [trt.DimsExprs(inputs[0])] * 2  # which the builder never looks at
            self._check_shapes(inputs)
            attributes = self._fields.attributes
            output = trt.DimsExprs(2)
            output[0] = inputs[0][0]
            output[1] = exprs.constant(attributes.num_heads * attributes.head_dim)
            return [output, trt.DimsExprs(inputs[POOL])]

        def _check_shapes(self, inputs: Sequence[Any]) -> None:
            attributes = self._fields.attributes
            for name, index, expected in (
                ("qkv", 0, attributes.qkv_features),
                ("kv", POOL, attributes.block_bytes // 2),
            ):
                features = inputs[index][1]
                if features.is_constant() and features.get_constant_value() != expected:
                    errors.append(
                        f"PagedAttention: {name} has {features.get_constant_value()} columns, its fields say {expected}"
                    )

        def supports_format_combination(self, position: int, tensors: Sequence[Any], num_inputs: int) -> bool:
            """Half inputs and outputs of one dtype, that of the KV layout; int32 descriptions; float32 constants."""
            if position in HALF_INPUTS or position >= num_inputs:
                is_bfloat16 = self._fields.attributes.kv_layout == "kvrow.bf16/1"
                expected = half_type(trt, "bfloat16" if is_bfloat16 else "float16")
            else:
                expected = trt.int32 if position < POOL else trt.float32
            return has_type(trt, tensors[position], expected)

        def get_aliased_input(self, output: int) -> int:
            """Output 1 is the pool."""
            return POOL if output == 1 else -1

        def get_workspace_size(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
            """Bytes for the greatest shapes of the profile."""
            del outputs
            return workspace_size(self._fields, inputs[0].max[0], inputs[2].max[0], inputs[3].max[1])

        def run(self, call: OpCall) -> None:
            launcher = kernel_sets.launcher(self._kernels)
            shape = StepShape(call.shapes[0][0], call.shapes[2][0], call.shapes[3][1])
            if call.outputs[1] != call.inputs[POOL]:
                raise ValueError(
                    f"PagedAttention writes its pool in place, at {call.inputs[POOL]:#x}; "
                    f"TensorRT gives {call.outputs[1]:#x} for its output"
                )
            output, workspace_address = call.outputs[0], call.workspace_address
            run_step(self._fields, launcher, shape, call.inputs, output, workspace_address, call.stream)

    def make(arrays: Mapping[str, NDArray[Any]]) -> PagedAttentionPlugin:
        plugin_fields = PluginFields.from_arrays(arrays)
        if KERNELS_SHA256 in arrays:
            return PagedAttentionPlugin(plugin_fields, kernel_sets.read(arrays))
        kernels = kernel_sets.compile(plugin_fields, lambda: compile_kernels(plugin_fields))
        return PagedAttentionPlugin(plugin_fields, kernels)

    return make_plugin_creator(trt, schema, FIELD_TYPES, make, errors)


def workspace_size(plugin_fields: PluginFields, num_tokens: int, num_sequences: int, max_blocks: int) -> int:
    """Bytes of device memory that a step of these sizes, or smaller ones, needs while it runs."""
    shape = StepShape(num_tokens, min(num_sequences, num_tokens), max_blocks)
    return workspace(plugin_fields.attributes, shape).size_bytes
