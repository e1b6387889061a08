"""The passes of a build for TensorRT, in order."""

from precast.builder.backends.tensorrt.lowering.check_lowered import CheckLowered
from precast.builder.backends.tensorrt.lowering.choose_tokens import ChooseTokens
from precast.builder.backends.tensorrt.lowering.lower_activations import LowerActivations
from precast.builder.backends.tensorrt.lowering.lower_attention import LowerAttention
from precast.builder.backends.tensorrt.lowering.lower_collectives import LowerCollectives
from precast.builder.backends.tensorrt.lowering.lower_embeddings import LowerEmbeddings
from precast.builder.backends.tensorrt.lowering.lower_linears import LowerLinears
from precast.builder.backends.tensorrt.lowering.lower_norms import LowerNorms
from precast.builder.backends.tensorrt.lowering.use_half import UseHalf
from precast.builder.passes.base import Pass
from precast.builder.passes.pipeline import COMMON_PASSES
from precast.builder.plan import BuildPlan


def tensorrt_passes(plan: BuildPlan) -> tuple[Pass, ...]:
    """From the emitted network to the one that TensorRT's parser reads."""
    return (
        *COMMON_PASSES,
        UseHalf(plan),
        LowerNorms(),
        LowerActivations(),
        LowerLinears(plan),
        LowerEmbeddings(plan),
        LowerAttention(plan),
        LowerCollectives(plan),
        ChooseTokens(plan),
        CheckLowered(),
    )
