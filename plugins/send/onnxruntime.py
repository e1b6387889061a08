"""Send as a custom op of ONNX Runtime on a device."""

from precast.plugins.device.op_call import OpCall
from precast.plugins.onnxruntime.op_kind import Shapes, Tools, make_kind
from precast.plugins.send import schema
from precast.plugins.send.device import SendFields, run_send


def _output_shapes(fields: SendFields, shapes: Shapes) -> Shapes:
    del fields, shapes
    return [(1,)]


def _run(fields: SendFields, tools: Tools, call: OpCall) -> None:
    run_send(fields, tools.group(), call)


KIND = make_kind(
    schema,
    SendFields,
    inputs=("half",),
    outputs=("int32",),
    output_shapes=_output_shapes,
    run=_run,
)
