"""The passes of a build for TensorRT, in order."""

from precast.builder.backends.lowering.check_lowered import CheckLowered
from precast.builder.backends.lowering.choose_tokens import ChooseTokens
from precast.builder.backends.lowering.lower_attention import LowerAttention
from precast.builder.backends.lowering.lower_collectives import LowerCollectives
from precast.builder.backends.lowering.lower_embeddings import LowerEmbeddings
from precast.builder.backends.lowering.lower_linears import LowerLinears
from precast.builder.backends.lowering.mark_layer_outputs import marking_passes
from precast.builder.backends.lowering.use_half import UseHalf
from precast.builder.backends.tensorrt.lowering.lower_activations import LowerActivations
from precast.builder.backends.tensorrt.lowering.lower_norms import LowerNorms
from precast.builder.passes.base import Pass
from precast.builder.passes.pipeline import COMMON_PASSES
from precast.builder.plan import BuildPlan
from precast.plugins import TENSORRT_OPS

OPSET = 23
IR_VERSION = 11
"""With RMSNormalization, and with dtypes of 4 bits. Only TensorRT's parser reads these graphs."""

BUILTIN_OPS = (
    "Add",
    "Cast",
    "Constant",
    "DequantizeLinear",
    "Equal",
    "Exp",
    "Gather",
    "Gemm",
    "Less",
    "Log",
    "Max",
    "Min",
    "Mul",
    "RMSNormalization",
    "ReduceMax",
    "ReduceMin",
    "ReduceSum",
    "Reshape",
    "Sigmoid",
    "Slice",
    "Split",
    "Squeeze",
    "Sub",
    "TopK",
    "Transpose",
    "Unsqueeze",
    "Where",
)


def tensorrt_passes(plan: BuildPlan) -> tuple[Pass, ...]:
    """From the emitted network to the one that TensorRT's parser reads."""
    return (
        *COMMON_PASSES,
        *marking_passes(plan),
        UseHalf(plan, OPSET, IR_VERSION),
        LowerNorms(),
        LowerActivations(),
        LowerLinears(plan),
        LowerEmbeddings(plan),
        LowerAttention(plan, is_plugin=True),
        LowerCollectives(plan, is_plugin=True),
        ChooseTokens(plan, has_ops=False),
        CheckLowered("TensorRT", BUILTIN_OPS, TENSORRT_OPS),
    )
