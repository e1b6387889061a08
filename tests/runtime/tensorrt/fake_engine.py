"""Engine directories for backend tensorrt, made by the real builder, whose plans are fake ones.

    manifest = build_fake_engine(tiny_llama("gqa"), tmp_path / "engine", weights="separate")

The directory is what the builder makes it, manifest and all; only rank0/model.plan is not TensorRT's.
"""

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest

from precast.builder.backends.onnxruntime_cuda import backend as cuda_backend
from precast.builder.backends.onnxruntime_cuda import planning as cuda_planning
from precast.builder.backends.tensorrt import backend, planning
from precast.builder.backends.tensorrt.library import TensorRtLibrary
from precast.builder.backends.tensorrt.plan_job import PlanJob
from precast.builder.build import build_engine
from precast.builder.build_config import BuildConfig
from precast.builder.progress import ProgressCallback
from precast.builder.ranks import rank_process, rank_processes
from precast.builder.ranks.built_rank import BuiltRank
from precast.builder.ranks.rank_job import RankJob
from precast.checkpoints.checkpoint import open_checkpoint
from precast.checkpoints.engine_manifest import EngineManifest
from tests.runtime.tensorrt.fake_packages import cuda
from tests.runtime.tensorrt.fake_packages import tensorrt_rtx as trt
from tests.runtime.tensorrt.fake_packages.cuda import bindings
from tests.runtime.tensorrt.fake_packages.cuda.bindings import driver
from tests.runtime.tensorrt.fake_tensorrt.plan import FakePlan, Range
from tests.runtime.tensorrt.fake_tensorrt.runtime import VERSION

PACKAGES = Path(__file__).parent / "fake_packages"
REPOSITORY = Path(__file__).parents[3]
PYTHON_PATH = f"{PACKAGES}:{REPOSITORY}"
"""PYTHONPATH of a process that is to find the fakes in place of cuda-python and TensorRT-RTX."""

SCRATCH_BYTES = (4096, 16384, 65536)
"""What profiles need; so that nobody takes one's for another's."""


def put_fakes_in_place(patch: pytest.MonkeyPatch) -> None:
    """Make this process import the fakes in place of tensorrt_rtx and cuda.bindings, on a machine that is new."""
    driver.reset()
    trt.reset_plugins()
    modules = {"tensorrt_rtx": trt, "cuda": cuda, "cuda.bindings": bindings, "cuda.bindings.driver": driver}
    for name, module in modules.items():
        patch.setitem(sys.modules, name, module)


def build_fake_engine(model: Path, output: Path, backend_name: str = "tensorrt", **options: Any) -> EngineManifest:
    """Build the checkpoint, for onnxruntime-cuda without kernels.

    `options` are fields of a BuildConfig; steps are small unless they say otherwise.
    """
    config = BuildConfig(**{"max_batch_size": 4, "max_num_tokens": 32, "max_seq_len": 64, **options})
    with pytest.MonkeyPatch.context() as patch, open_checkpoint(model) as checkpoint:
        patch.setattr(planning, "find_library", lambda: TensorRtLibrary("tensorrt_rtx", VERSION))
        patch.setattr(planning, "find_kernel_compiler", lambda backend, extra: "none")
        patch.setattr(backend, "build_plan", write_fake_plan)
        patch.setattr(cuda_planning, "find_kernel_compiler", lambda backend, extra: "none")
        patch.setattr(cuda_backend, "compile_sets", lambda sets, targets: [b"no kernels"] * len(sets))
        patch.setattr(rank_processes, "build_ranks", _build_ranks_here)
        return build_engine(checkpoint, output, config, backend=backend_name)


def _build_ranks_here(jobs: Sequence[RankJob], *_: object) -> list[BuiltRank]:
    """In place of processes, which would know nothing of fakes."""
    return [rank_process._build(job, io.StringIO()) for job in jobs]


def write_fake_plan(job: PlanJob, weights_bytes: int, progress: ProgressCallback) -> int:
    """In place of build_plan: the plan is the network of the job, with the weights that are to be inside."""
    progress("building the plan", 0, weights_bytes)
    data = fake_plan(job).to_bytes()
    with Path(job.plan).open("xb") as file:
        file.write(data)
    progress("building the plan", weights_bytes, weights_bytes)
    return len(data)


def fake_plan(job: PlanJob) -> FakePlan:
    """The fake plan of a job."""
    model = onnx.load(job.graph)  # with the weights that lie beside it
    return FakePlan(
        library_version=VERSION,
        targets=job.targets,
        profiles=tuple(
            tuple(Range(entry.name, entry.least, entry.common, entry.greatest) for entry in profile)
            for profile in job.profiles
        ),
        scratch_bytes=SCRATCH_BYTES[: len(job.profiles)],
        model=model.SerializeToString(deterministic=True),
    )
