"""AllReduce as a custom op of ONNX Runtime on a device."""

from precast.plugins.all_reduce import schema
from precast.plugins.all_reduce.device import AllReduceFields, run_all_reduce
from precast.plugins.collectives.device.one_shot import one_shot_specs
from precast.plugins.device.kernel_spec import KernelSpec
from precast.plugins.device.op_call import OpCall
from precast.plugins.onnxruntime.op_kind import Shapes, Tools, make_kind


def _specs(fields: AllReduceFields) -> tuple[KernelSpec, ...]:
    return one_shot_specs(fields.num_ranks, fields.dtype)


def _output_shapes(fields: AllReduceFields, shapes: Shapes) -> Shapes:
    del fields
    return [shapes[0]]


def _run(fields: AllReduceFields, tools: Tools, call: OpCall) -> None:
    rows, features = call.shapes[0]
    run_all_reduce(fields, tools.group(), tools.launcher, rows * features, call.inputs[0], call.outputs[0], call.stream)


KIND = make_kind(
    schema,
    AllReduceFields,
    inputs=("half",),
    outputs=("half",),
    output_shapes=_output_shapes,
    run=_run,
    specs=_specs,
)
