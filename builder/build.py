"""Checkpoint -> engine: the table of contents of the builder."""

import os
from math import prod
from pathlib import Path

from precast.builder.backends import get_backend
from precast.builder.build_config import BuildConfig
from precast.builder.manifest import engine_manifest
from precast.builder.network.implemented import check_implemented
from precast.builder.plan import BuildPlan, plan_build, plan_ranks
from precast.builder.progress import ProgressCallback, ignore_progress
from precast.builder.ranks.built_rank import BuiltRank, build_rank
from precast.checkpoints.checkpoint import Checkpoint
from precast.checkpoints.engine_manifest import EngineManifest
from precast.checkpoints.engine_writer import EngineWriter
from precast.checkpoints.ranks.partition import Partition
from precast.checkpoints.ranks.rank_model import rank_model
from precast.checkpoints.tensor_info import NUMPY_DTYPES

TOKENIZER_DIR = "tokenizer"


def build_engine(
    checkpoint: Checkpoint,
    output_dir: str | os.PathLike[str],
    config: BuildConfig = BuildConfig(),  # noqa: B008 - frozen
    *,
    backend: str = "onnxruntime",
    num_processes: int | None = None,
    dump_graphs: Path | None = None,
    progress: ProgressCallback | None = None,
    overwrite: bool = False,
) -> EngineManifest:
    """Build an engine directory, complete or not at all.

    Host memory is bounded by the largest weight, not by the model; with several ranks, by as many of the largest slices
    as there are processes. Not so where TensorRT puts the weights into its plan: it holds them all, and the plan. The
    same inputs give the same bytes, where the manifest says `reproducible`.

    Args:
        checkpoint: Open; it stays the caller's to close.
        output_dir: Made by this call; must not exist, be empty, or hold an engine if `overwrite`.
        config: See BuildConfig.
        backend: One of backends.BACKENDS.
        num_processes: Ranks that are built at a time, each in a process of its own, where there are several ranks.
            None: as many as this process may use processors.
        dump_graphs: A directory for the graph as emitted and after every pass, as text and as ONNX; with several
            ranks, for a directory of each.
        progress: Told the bytes of weights that are done.
        overwrite: Replace an engine at `output_dir`, in one step.

    Returns:
        The manifest as written.

    Raises:
        UnsupportedModelError: the model has a feature that the builder lacks.
        BuildError: the config asks what the model or the backend cannot do, a pass failed, or a process that builds
            ended.
        ModuleNotFoundError: what the backend builds with is not installed.
        PartitionError: the model cannot be spread over the ranks that the config asks for.
        EngineExistsError: `output_dir` is taken.
        EngineIOError: a file cannot be written.
    """
    model, lowering = checkpoint.config, get_backend(backend)
    check_implemented(model)
    plan = plan_build(model, config, backend)
    partition = plan_ranks(model, config, checkpoint.partition, backend)
    report = progress or ignore_progress
    with EngineWriter(output_dir, overwrite_engine=overwrite) as writer:
        if partition.mapping.world_size == 1:
            rank = rank_model(model, partition, 0)
            built = [build_rank(checkpoint, rank, plan, lowering, writer, dump_graphs=dump_graphs, progress=report)]
        else:
            built = _build_ranks(
                checkpoint, writer, plan, partition, backend, num_processes or _num_processors(), dump_graphs, report
            )
        copy_companion_files(writer, checkpoint)
        return writer.commit(engine_manifest(model, config, plan, partition.mapping, lowering, built))


def _build_ranks(
    checkpoint: Checkpoint,
    writer: EngineWriter,
    plan: BuildPlan,
    partition: Partition,
    backend: str,
    num_processes: int,
    dump_graphs: Path | None,
    progress: ProgressCallback,
) -> list[BuiltRank]:
    """Build the ranks beside each other."""
    from precast.builder.ranks.rank_job import RankJob
    from precast.builder.ranks.rank_processes import build_ranks

    ranks = range(partition.mapping.world_size)
    jobs = [
        RankJob(
            checkpoint=str(checkpoint.path.absolute()),
            tokenizer=str(checkpoint.tokenizer.absolute()),
            output=str(writer.path),
            rank=rank,
            partition=partition,
            plan=plan,
            backend=backend,
            dump_graphs="" if dump_graphs is None else str((dump_graphs / f"rank{rank}").absolute()),
            parent_pid=os.getpid(),
        )
        for rank in ranks
    ]
    slices = [rank_model(checkpoint.config, partition, rank).slices.values() for rank in ranks]
    item_bytes = NUMPY_DTYPES[plan.dtype].itemsize
    sizes_bytes = [sum(prod(part.shape) * item_bytes for part in parts) for parts in slices]
    built = build_ranks(jobs, sizes_bytes, num_processes, progress)
    for rank in built:
        if rank.files.weights is not None and rank.weights is not None:
            writer.add_weights(rank.files.weights, rank.weights)
    return built


def _num_processors() -> int:
    return len(os.sched_getaffinity(0))


def copy_companion_files(writer: EngineWriter, checkpoint: Checkpoint) -> None:
    """The checkpoint's tokenizer and configs: what running the engine needs beside it."""
    for file in checkpoint.companion_files():
        writer.copy_file(file, f"{TOKENIZER_DIR}/{file.name}")
