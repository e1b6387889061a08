"""Other weights for an engine that has them beside its plan: everything of a build but the plan, which is copied."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from precast.builder.backends import get_backend
from precast.builder.backends.device_planning import plan_dtypes
from precast.builder.backends.separate_weights import network_sha256
from precast.builder.build import copy_companion_files
from precast.builder.build_config import BuildConfig
from precast.builder.errors import BuildError
from precast.builder.manifest import model_info
from precast.builder.network.decoder import emit_network
from precast.builder.network.implemented import check_implemented
from precast.builder.network.network import Network
from precast.builder.network.onnx_model import onnx_bytes
from precast.builder.packing import pack_weights, weight_specs
from precast.builder.passes.base import run_passes
from precast.builder.plan import BuildPlan, DevicePlan, check_max_seq_len, rope_notes
from precast.builder.progress import ProgressCallback, ignore_progress
from precast.checkpoints.checkpoint import Checkpoint, RankTensors
from precast.checkpoints.durable_files import hash_file
from precast.checkpoints.engine_dir import check_files, read_manifest
from precast.checkpoints.engine_errors import CorruptEngineError
from precast.checkpoints.engine_manifest import EngineManifest, OnnxRuntimeRequirements, RankFiles, TensorRtRequirements
from precast.checkpoints.engine_writer import EngineWriter
from precast.checkpoints.ranks.partition import Partition
from precast.checkpoints.ranks.rank_model import RankModel, rank_model
from precast.checkpoints.ranks.tensor_parallel import check_tensor_parallel_size


def refit_engine(
    engine_dir: str | os.PathLike[str],
    checkpoint: Checkpoint,
    output_dir: str | os.PathLike[str],
    *,
    progress: ProgressCallback | None = None,
    overwrite: bool = False,
) -> EngineManifest:
    """Write the engine that `engine_dir` would be, had it been built from `checkpoint`. TensorRT is not needed.

    Args:
        engine_dir: An engine for GPUs, with its weights separate. It stays as it is.
        checkpoint: Of a model with the same network. It stays the caller's to close.
        output_dir: Made by this call; must not exist, be empty, or hold an engine if `overwrite`.
        progress: Told the bytes of weights that are done.
        overwrite: Replace an engine at `output_dir`, which may be `engine_dir`, in one step.

    Returns:
        The manifest as written.

    Raises:
        BuildError: the engine's weights are in its plan, or the checkpoint's network is another, or its sequences are
            shorter than the engine's.
        PartitionError: the checkpoint's model cannot be divided as the engine is.
        EngineError: the engine cannot be read, or the new one not written.
    """
    engine_dir = Path(engine_dir)
    manifest = read_manifest(engine_dir)
    plan = _plan_of(manifest, engine_dir)
    check_files(engine_dir, manifest)
    check_implemented(checkpoint.config)
    plan = _replan(checkpoint, plan)
    ranks = _ranks_of(manifest, checkpoint, plan, engine_dir)
    networks = [_emit(rank, plan, manifest.backend) for rank in ranks]
    for files, network in zip(manifest.ranks, networks, strict=True):
        _check_same_network(manifest, files, checkpoint, network, plan, engine_dir)
        _check_plan(manifest, engine_dir / files.graph, files.graph)
    is_limit = plan.max_seq_len == checkpoint.config.max_position_embeddings and manifest.build.max_seq_len is None
    build = replace(manifest.build, notes=plan.notes, max_seq_len=None if is_limit else plan.max_seq_len)
    report = _Total(networks, progress or ignore_progress)
    with EngineWriter(output_dir, overwrite_engine=overwrite) as writer:
        for files, rank, network in zip(manifest.ranks, ranks, networks, strict=True):
            writer.copy_file(engine_dir / files.graph, files.graph)
            with writer.open_weights(str(files.weights), weight_specs(network)) as weights_file:
                pack_weights(network, RankTensors(checkpoint, rank), weights_file, report)
            report.end_rank()
        copy_companion_files(writer, checkpoint)
        model = model_info(checkpoint.config, plan)
        return writer.commit(replace(manifest, model=model, build=build, files={}))


def _plan_of(manifest: EngineManifest, engine_dir: Path) -> BuildPlan:
    """The plan that the engine was built with, as far as its network depends on it."""
    needs, build = manifest.backend_requirements, manifest.build
    if isinstance(needs, OnnxRuntimeRequirements):
        raise BuildError(
            f"{engine_dir}: an engine for {manifest.backend} has no plan to keep: build it from the checkpoint"
        )
    if manifest.ranks[0].network_sha256 is None:
        raise BuildError(
            f"{engine_dir}: the weights are inside the plan: build it again, with weights separate if they are to be "
            "exchanged later"
        )
    if isinstance(needs, TensorRtRequirements):
        library, library_version, quantization = needs.library, needs.library_version, needs.quantization
    else:
        library, library_version, quantization = "onnxruntime", needs.onnxruntime_min, None
    device = DevicePlan(
        library=library,
        library_version=library_version,
        kernel_compiler="",
        targets=needs.targets,
        min_capability=needs.min_capability,
        quantization=quantization,
        separate_weights=True,
        max_batch_size=needs.max_batch_size,
        max_num_tokens=needs.max_num_tokens,
    )
    return BuildPlan(
        build.dtype, build.kv_cache_dtype, build.tokens_per_block, manifest.model.max_seq_len, build.notes, device
    )


def _replan(checkpoint: Checkpoint, plan: BuildPlan) -> BuildPlan:
    """The plan of a build from this checkpoint: the engine's, with the notes that are this checkpoint's.

    Raises:
        BuildError: the engine's sequences are longer than the checkpoint's model can.
    """
    config = BuildConfig(dtype=plan.dtype, max_seq_len=plan.max_seq_len)
    _, _, notes = plan_dtypes(checkpoint.config, replace(config, dtype="auto"), "GPUs")
    max_seq_len = check_max_seq_len(checkpoint.config, config)
    dtype_notes = notes if plan.dtype == "bfloat16" else ()
    return replace(plan, notes=(*dtype_notes, *rope_notes(checkpoint.config, max_seq_len)))


def _check_plan(manifest: EngineManifest, path: Path, name: str) -> None:
    """Raise CorruptEngineError where the plan is damaged: the new manifest would have the hash of what is wrong."""
    digest, listed = hash_file(path), manifest.files[name].sha256
    if digest != listed:
        raise CorruptEngineError(
            f"{path}: SHA-256 is {digest}, engine.json says {listed}: copy the engine again or rebuild it"
        )


class _Total:
    """The progress of all ranks as one, of what each reports."""

    def __init__(self, networks: Sequence[Network], report: ProgressCallback) -> None:
        self._total_bytes = sum(recipe.size_bytes for network in networks for recipe in network.weights.values())
        self._before = self._done = 0
        self._report = report

    def __call__(self, stage: str, done_bytes: int, total_bytes: int, /) -> None:
        del total_bytes
        if done_bytes or not self._before:  # a later rank's first report would be a second one of the same bytes
            self._done = self._before + done_bytes
            self._report(stage, self._done, self._total_bytes)

    def end_rank(self) -> None:
        self._before = self._done


def _ranks_of(manifest: EngineManifest, checkpoint: Checkpoint, plan: BuildPlan, engine_dir: Path) -> list[RankModel]:
    """What each of the engine's ranks has of the checkpoint's model, which must have as many layers."""
    model, mapping = checkpoint.config, manifest.mapping
    if len(model.layers) != manifest.model.num_layers:
        raise _another_network(manifest, checkpoint, plan, engine_dir)
    check_tensor_parallel_size(model, mapping.tensor_parallel_size)
    # Every layer has attention, and so a pool on each rank of its stage.
    first_ranks = manifest.ranks[:: mapping.tensor_parallel_size]
    partition = Partition(mapping, tuple(len(files.kv_caches) for files in first_ranks))
    return [rank_model(model, partition, number) for number in range(mapping.world_size)]


def _emit(rank: RankModel, plan: BuildPlan, backend: str) -> Network:
    network = emit_network(rank, plan)
    run_passes(network, get_backend(backend).passes(plan))
    return network


def _check_same_network(
    manifest: EngineManifest,
    files: RankFiles,
    checkpoint: Checkpoint,
    network: Network,
    plan: BuildPlan,
    engine_dir: Path,
) -> None:
    data = onnx_bytes(network, dict.fromkeys(network.weights, 0))
    if network_sha256(data) != files.network_sha256:
        raise _another_network(manifest, checkpoint, plan, engine_dir)


def _another_network(manifest: EngineManifest, checkpoint: Checkpoint, plan: BuildPlan, engine_dir: Path) -> BuildError:
    ours, theirs = manifest.model, model_info(checkpoint.config, plan)
    differences = [
        f"{name} {getattr(theirs, name)} instead of {getattr(ours, name)}"
        for name in ("architecture", "vocab_size", "hidden_size", "num_layers")
        if getattr(ours, name) != getattr(theirs, name)
    ]
    what = ", ".join(differences) or "sizes or constants of its layers, or it was built by another version"
    return BuildError(
        f"{checkpoint.path}: its network is not that of {engine_dir} ({what}): build an engine from it instead"
    )
