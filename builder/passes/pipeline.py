"""The passes of a build, in order."""

from precast.builder.passes.base import Pass
from precast.builder.passes.check_supported import CheckSupported
from precast.builder.passes.fuse_residual_norm import FuseResidualNorm
from precast.builder.passes.merge_parallel_linears import MergeParallelLinears
from precast.builder.passes.remove_unused import RemoveUnused
from precast.builder.passes.select_rows_early import SelectRowsEarly

COMMON_PASSES: tuple[Pass, ...] = (
    MergeParallelLinears(),
    SelectRowsEarly(),
    FuseResidualNorm(),
    RemoveUnused(),
)
"""What every backend starts with."""

PIPELINE: tuple[Pass, ...] = (*COMMON_PASSES, CheckSupported())
"""Of the backend onnxruntime; those of TensorRT are in backends/tensorrt/lowering/pipeline.py."""
