"""PagedAttention as a custom op of ONNX Runtime on a device: its one output is [T, Hq * D], the pool is an input."""

from collections.abc import Mapping
from typing import Any

from precast.plugins.device.op_call import OpCall
from precast.plugins.onnxruntime.op_kind import OpKind, Shapes, Tools
from precast.plugins.paged_attention import schema
from precast.plugins.paged_attention.device.kernels import kernel_specs
from precast.plugins.paged_attention.device.launches import StepShape, workspace
from precast.plugins.paged_attention.device.op_fields import FIELD_TYPES, PluginFields, fields_from_values
from precast.plugins.paged_attention.device.run import run_step


def _specs(fields: PluginFields) -> Any:
    return kernel_specs(
        fields.attributes, fields.rotary_dim, fields.num_frequencies, fields.has_qk_norm, fields.has_sinks
    )


def _output_shapes(fields: PluginFields, shapes: Shapes) -> Shapes:
    return [(shapes[0][0], fields.attributes.num_heads * fields.attributes.head_dim)]


def _step_shape(shapes: Shapes) -> StepShape:
    return StepShape(shapes[0][0], shapes[2][0], shapes[3][1])


def _workspace_bytes(fields: PluginFields, shapes: Shapes) -> int:
    return workspace(fields.attributes, _step_shape(shapes)).size_bytes


def _run(fields: PluginFields, tools: Tools, call: OpCall) -> None:
    shape = _step_shape(call.shapes)
    run_step(fields, tools.launcher(), shape, call.inputs, call.outputs[0], call.workspace_address, call.stream)


def _read_fields(values: Mapping[str, Any]) -> PluginFields:
    return fields_from_values(values)


KIND = OpKind(
    name=schema.NAME,
    inputs=("half", "int32", "int32", "int32", "half", "float32", "float32", "float32", "float32"),
    outputs=("half",),
    attributes=FIELD_TYPES,
    read_fields=_read_fields,
    output_shapes=_output_shapes,
    run=_run,
    specs=_specs,
    workspace_bytes=_workspace_bytes,
    num_optional_inputs=4,
)
