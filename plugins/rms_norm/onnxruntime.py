"""RmsNorm as a custom op of ONNX Runtime on a device."""

from precast.plugins.device.op_call import OpCall
from precast.plugins.onnxruntime.op_kind import Shapes, Tools, make_kind
from precast.plugins.rms_norm import schema
from precast.plugins.rms_norm.device.launches import kernel_specs, run_rms_norm
from precast.plugins.rms_norm.device.op_fields import RmsNormFields


def _output_shapes(fields: RmsNormFields, shapes: Shapes) -> Shapes:
    del fields
    return [shapes[0]] * 2


def _run(fields: RmsNormFields, tools: Tools, call: OpCall) -> None:
    run_rms_norm(fields, tools.launcher(), call)


KIND = make_kind(
    schema,
    RmsNormFields,
    inputs=("half", "half", "half"),
    outputs=("half", "half"),
    output_shapes=_output_shapes,
    run=_run,
    specs=kernel_specs,
    num_optional_inputs=1,
    num_optional_outputs=1,
)
