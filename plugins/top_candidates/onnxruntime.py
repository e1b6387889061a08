"""TopCandidates as a custom op of ONNX Runtime on a device."""

from precast.plugins.device.op_call import OpCall
from precast.plugins.onnxruntime.op_kind import Shapes, Tools, make_kind
from precast.plugins.top_candidates import schema
from precast.plugins.top_candidates.device.launches import kernel_specs, run_top_candidates, workspace
from precast.plugins.top_candidates.device.op_fields import TopCandidatesFields


def _output_shapes(fields: TopCandidatesFields, shapes: Shapes) -> Shapes:
    return [(shapes[0][0], fields.num_candidates)] * 2


def _run(fields: TopCandidatesFields, tools: Tools, call: OpCall) -> None:
    run_top_candidates(fields, tools.launcher(), call)


def _workspace_bytes(fields: TopCandidatesFields, shapes: Shapes) -> int:
    return workspace(fields, shapes[0][0]).size_bytes


KIND = make_kind(
    schema,
    TopCandidatesFields,
    inputs=("float32",),
    outputs=("int32", "float32"),
    output_shapes=_output_shapes,
    run=_run,
    specs=kernel_specs,
    workspace_bytes=_workspace_bytes,
)
