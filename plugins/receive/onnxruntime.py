"""Receive as a custom op of ONNX Runtime on a device."""

from precast.plugins.device.op_call import OpCall
from precast.plugins.onnxruntime.op_kind import Shapes, Tools, make_kind
from precast.plugins.receive import schema
from precast.plugins.receive.device import ReceiveFields, run_receive


def _output_shapes(fields: ReceiveFields, shapes: Shapes) -> Shapes:
    return [(shapes[0][0], fields.num_features)]


def _run(fields: ReceiveFields, tools: Tools, call: OpCall) -> None:
    run_receive(fields, tools.group(), call)


KIND = make_kind(
    schema,
    ReceiveFields,
    inputs=("int32",),
    outputs=("half",),
    output_shapes=_output_shapes,
    run=_run,
)
