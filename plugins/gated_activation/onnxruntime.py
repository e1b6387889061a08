"""GatedActivation as a custom op of ONNX Runtime on a device."""

from precast.plugins.device.op_call import OpCall
from precast.plugins.gated_activation import schema
from precast.plugins.gated_activation.device.launches import kernel_specs, run_gated_activation
from precast.plugins.gated_activation.device.op_fields import GatedActivationFields
from precast.plugins.onnxruntime.op_kind import Shapes, Tools, make_kind


def _output_shapes(fields: GatedActivationFields, shapes: Shapes) -> Shapes:
    return [(shapes[0][0], fields.num_features)]


def _run(fields: GatedActivationFields, tools: Tools, call: OpCall) -> None:
    run_gated_activation(fields, tools.launcher(), call)


KIND = make_kind(
    schema,
    GatedActivationFields,
    inputs=("half",),
    outputs=("half",),
    output_shapes=_output_shapes,
    run=_run,
    specs=kernel_specs,
)
