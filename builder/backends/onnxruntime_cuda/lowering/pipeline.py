"""The passes of a build for ONNX Runtime on GPUs, in order."""

from precast.builder.backends.lowering.check_lowered import CheckLowered
from precast.builder.backends.lowering.choose_tokens import ChooseTokens
from precast.builder.backends.lowering.lower_attention import LowerAttention
from precast.builder.backends.lowering.lower_collectives import LowerCollectives
from precast.builder.backends.lowering.lower_embeddings import LowerEmbeddings
from precast.builder.backends.lowering.lower_linears import LowerLinears
from precast.builder.backends.lowering.mark_layer_outputs import marking_passes
from precast.builder.backends.lowering.use_half import UseHalf
from precast.builder.backends.onnxruntime_cuda.lowering.drop_unread_inputs import DropUnreadInputs
from precast.builder.backends.onnxruntime_cuda.lowering.say_fields import SayFields
from precast.builder.network.emitter import IR_VERSION, OPSET
from precast.builder.passes.base import Pass
from precast.builder.passes.pipeline import COMMON_PASSES
from precast.builder.plan import BuildPlan
from precast.plugins import CUDA_OPS

BUILTIN_OPS = (
    "Add",
    "Cast",
    "Constant",
    "Equal",
    "Gather",
    "Gemm",
    "Less",
    "Max",
    "Min",
    "Reshape",
    "Slice",
    "Sub",
    "Transpose",
    "Unsqueeze",
    "Where",
)
"""Each has a kernel of the CUDA provider for the types that it is used with, so that nothing of a step leaves the GPU
(tests/runtime/onnxruntime/test_cuda_provider.py)."""


def cuda_passes(plan: BuildPlan) -> tuple[Pass, ...]:
    """From the emitted network to the one that ONNX Runtime loads."""
    return (
        *COMMON_PASSES,
        *marking_passes(plan),
        UseHalf(plan, OPSET, IR_VERSION),
        SayFields(plan),
        LowerLinears(plan),
        LowerEmbeddings(plan),
        LowerAttention(plan, is_plugin=False),
        LowerCollectives(plan, is_plugin=False),
        ChooseTokens(plan, has_ops=True),
        DropUnreadInputs(),
        CheckLowered("device cuda", BUILTIN_OPS, CUDA_OPS),
    )
