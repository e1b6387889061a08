"""GreedyTokens as a custom op of ONNX Runtime on a device."""

from precast.plugins.device.op_call import OpCall
from precast.plugins.greedy_tokens import schema
from precast.plugins.greedy_tokens.device.launches import kernel_specs, run_greedy_tokens, workspace
from precast.plugins.greedy_tokens.device.op_fields import GreedyTokensFields
from precast.plugins.onnxruntime.op_kind import Shapes, Tools, make_kind


def _output_shapes(fields: GreedyTokensFields, shapes: Shapes) -> Shapes:
    del fields
    return [(shapes[0][0],)] * 2


def _run(fields: GreedyTokensFields, tools: Tools, call: OpCall) -> None:
    run_greedy_tokens(fields, tools.launcher(), call)


def _workspace_bytes(fields: GreedyTokensFields, shapes: Shapes) -> int:
    return workspace(fields, shapes[0][0]).size_bytes


KIND = make_kind(
    schema,
    GreedyTokensFields,
    inputs=("float32",),
    outputs=("int32", "float32"),
    output_shapes=_output_shapes,
    run=_run,
    specs=kernel_specs,
    workspace_bytes=_workspace_bytes,
)
