"""AllGather as a custom op of ONNX Runtime on a device."""

from precast.plugins.all_gather import schema
from precast.plugins.all_gather.device import AllGatherFields, run_all_gather
from precast.plugins.device.op_call import OpCall
from precast.plugins.onnxruntime.op_kind import Shapes, Tools, make_kind


def _output_shapes(fields: AllGatherFields, shapes: Shapes) -> Shapes:
    return [(fields.num_ranks, *shapes[0])]


def _run(fields: AllGatherFields, tools: Tools, call: OpCall) -> None:
    run_all_gather(fields, tools.group(), call)


KIND = make_kind(
    schema,
    AllGatherFields,
    inputs=("half",),
    outputs=("half",),
    output_shapes=_output_shapes,
    run=_run,
)
