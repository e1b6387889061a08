"""The plugin's classes, which derive from those of the TensorRT that is loaded, tensorrt or tensorrt_rtx."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from precast.plugins.device.launcher import Launcher, open_launcher
from precast.plugins.paged_attention import schema
from precast.plugins.paged_attention.device.launches import StepShape, workspace
from precast.plugins.paged_attention.tensorrt.fields import (
    FIELD_TYPES,
    HALF_INPUTS,
    KERNELS,
    KERNELS_SHA256,
    PLUGIN_NAMESPACE,
    POOL,
    PluginFields,
    read_text,
)
from precast.plugins.paged_attention.tensorrt.run import run_step

CompileKernels = Callable[[PluginFields], bytes]
"""The kernels of a plugin, as bytes; asked once for each set of equal fields."""


OpenLauncher = Callable[[bytes], Launcher]
"""Loads the kernels that these bytes hold into the current context."""


def make_creator(
    trt: Any, compile_kernels: CompileKernels, errors: list[str], open_launcher: OpenLauncher = open_launcher
) -> Any:
    """The creator of the op's plugins, to be registered in TensorRT's registry under PLUGIN_NAMESPACE.

    TensorRT calls it and its plugins from C++, which knows no Python exceptions: what goes wrong is added to `errors`,
    and TensorRT then fails in its own words.

    Args:
        trt: The module.
        compile_kernels: For plugins of new networks.
        errors: Sentences, the first of which is the cause.
        open_launcher: For plugins that run; asked once for each set of kernels.
    """
    field_types = {
        int: trt.PluginFieldType.INT32,
        float: trt.PluginFieldType.FLOAT32,
        str: trt.PluginFieldType.CHAR,
    }

    class PagedAttentionPlugin(  # the module is only known now
        trt.IPluginV3,  # type: ignore[misc]
        trt.IPluginV3OneCore,  # type: ignore[misc]
        trt.IPluginV3OneBuildV2,  # type: ignore[misc]
        trt.IPluginV3OneRuntime,  # type: ignore[misc]
    ):
        """One node of a network, or one of its clones, of which TensorRT makes as many as it likes."""

        def __init__(self, plugin_fields: PluginFields, kernels_sha256: str, *, carries_kernels: bool) -> None:
            for base in (trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuildV2, trt.IPluginV3OneRuntime):
                base.__init__(self)
            self.plugin_name = schema.NAME
            self.plugin_version = str(schema.VERSION)
            self.plugin_namespace = PLUGIN_NAMESPACE
            self.num_outputs = 2
            self._fields = plugin_fields
            self._kernels_sha256 = kernels_sha256
            self._carries_kernels = carries_kernels
            alive.append(self)  # TensorRT's reference does not keep the Python part alive

        def get_capability_interface(self, kind: object) -> "PagedAttentionPlugin":
            del kind
            return self

        def clone(self) -> "PagedAttentionPlugin":
            return PagedAttentionPlugin(self._fields, self._kernels_sha256, carries_kernels=self._carries_kernels)

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
            tensor = tensors[position].desc
            if tensor.format != trt.TensorFormat.LINEAR:
                return False
            if position in HALF_INPUTS or position >= num_inputs:
                half = trt.bfloat16 if self._fields.attributes.kv_layout == "kvrow.bf16/1" else trt.float16
                return bool(tensor.type == half)
            return bool(tensor.type == (trt.int32 if position < POOL else trt.float32))

        def get_aliased_input(self, output: int) -> int:
            """Output 1 is the pool."""
            return POOL if output == 1 else -1

        def configure_plugin(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
            del inputs, outputs

        def get_valid_tactics(self) -> list[int]:
            return []

        def get_workspace_size(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
            """Bytes for the greatest shapes of the profile."""
            del outputs
            return workspace_size(self._fields, inputs[0].max[0], inputs[2].max[0], inputs[3].max[1])

        def get_fields_to_serialize(self) -> Any:
            arrays = self._fields.to_arrays()
            kinds = {name: field_types[FIELD_TYPES[name]] for name in arrays}
            arrays[KERNELS_SHA256] = np.frombuffer(self._kernels_sha256.encode("ascii"), np.int8)
            kinds[KERNELS_SHA256] = trt.PluginFieldType.CHAR
            if self._carries_kernels:
                arrays[KERNELS] = np.frombuffer(kernel_sets[self._kernels_sha256], np.int8)
                kinds[KERNELS] = trt.PluginFieldType.INT8
            self._serialized = arrays  # TensorRT reads them after this call
            return trt.PluginFieldCollection([trt.PluginField(name, arrays[name], kinds[name]) for name in arrays])

        def attach_to_context(self, context: object) -> "PagedAttentionPlugin":
            del context
            return self.clone()

        def on_shape_change(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
            del inputs, outputs
            return 0

        def set_tactic(self, tactic: int) -> int:
            del tactic
            return 0

        def enqueue(
            self,
            input_descs: Sequence[Any],
            output_descs: Sequence[Any],
            inputs: Sequence[int],
            outputs: Sequence[int],
            workspace_address: int,
            stream: int,
        ) -> int:
            """Returns 0, or 1 where it failed."""
            del output_descs
            tokens, lengths, tables = (input_descs[index].dims for index in (0, 2, 3))
            try:
                if self._kernels_sha256 not in launchers:
                    if self._kernels_sha256 not in kernel_sets:
                        raise ValueError(f"the plan lacks the kernels {self._kernels_sha256}: rebuild the engine")
                    launchers[self._kernels_sha256] = open_launcher(kernel_sets[self._kernels_sha256])
                launcher = launchers[self._kernels_sha256]
                shape = StepShape(tokens[0], lengths[0], tables[1])
                run_step(self._fields, launcher, shape, inputs, outputs, workspace_address, stream)
            except Exception as error:  # noqa: BLE001 - must not cross C++; the session raises it again as text
                errors.append(f"PagedAttention: {error}")
                return 1
            return 0

    class PagedAttentionCreator(trt.IPluginCreatorV3One):  # type: ignore[misc]
        """Makes plugins from an ONNX node's attributes, or from what a plan holds."""

        def __init__(self) -> None:
            super().__init__()
            self.name = schema.NAME
            self.plugin_version = str(schema.VERSION)
            self.plugin_namespace = PLUGIN_NAMESPACE
            self.field_names = trt.PluginFieldCollection(
                [trt.PluginField(name, np.empty(0, np.int8), field_types[kind]) for name, kind in FIELD_TYPES.items()]
            )
            self._compiled: dict[PluginFields, str] = {}

        def create_plugin(self, name: str, collection: Sequence[Any], phase: object) -> PagedAttentionPlugin | None:
            del phase  # the fields say it: only a plan's name their kernels
            try:
                arrays = {field.name: field.data for field in collection}
                plugin_fields = PluginFields.from_arrays(arrays)
                if KERNELS_SHA256 in arrays:
                    return self._from_plan(plugin_fields, arrays)
                carries_kernels = plugin_fields not in self._compiled
                if carries_kernels:
                    kernels = compile_kernels(plugin_fields)
                    self._compiled[plugin_fields] = _sha256(kernels)
                    kernel_sets[_sha256(kernels)] = kernels
                sha256 = self._compiled[plugin_fields]
                return PagedAttentionPlugin(plugin_fields, sha256, carries_kernels=carries_kernels)
            except Exception as error:  # noqa: BLE001 - must not cross C++; the builder raises it again as text
                errors.append(f"{name}: {error}")
                return None

        def _from_plan(self, plugin_fields: PluginFields, arrays: dict[str, Any]) -> PagedAttentionPlugin:
            sha256 = read_text(arrays[KERNELS_SHA256])
            if KERNELS in arrays:
                kernels = np.asarray(arrays[KERNELS]).tobytes()
                if _sha256(kernels) != sha256:
                    raise ValueError(
                        f"PagedAttention: the plan's kernels have the SHA-256 {_sha256(kernels)}, it says {sha256}: "
                        "copy the engine again or rebuild it"
                    )
                kernel_sets[sha256] = kernels
            return PagedAttentionPlugin(plugin_fields, sha256, carries_kernels=KERNELS in arrays)

    alive: list[PagedAttentionPlugin] = []
    kernel_sets: dict[str, bytes] = {}  # by hash; a plan's plugins are made in any order
    launchers: dict[str, Launcher] = {}
    return PagedAttentionCreator()


def workspace_size(plugin_fields: PluginFields, num_tokens: int, num_sequences: int, max_blocks: int) -> int:
    """Bytes of device memory that a step of these sizes, or smaller ones, needs while it runs."""
    shape = StepShape(num_tokens, min(num_sequences, num_tokens), max_blocks)
    return workspace(plugin_fields.attributes, shape).size_bytes


def _sha256(kernels: bytes) -> str:
    return hashlib.sha256(kernels).hexdigest()
