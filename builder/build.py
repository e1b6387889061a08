"""Checkpoint -> engine: the table of contents of the builder."""

import os
from collections.abc import Sequence
from pathlib import Path

from precast.builder.backends import get_backend
from precast.builder.backends.base import Backend
from precast.builder.build_config import BuildConfig
from precast.builder.manifest import engine_manifest
from precast.builder.network.decoder import emit_network
from precast.builder.network.network import Network
from precast.builder.network.onnx_model import WEIGHTS_LOCATION
from precast.builder.packing import pack_weights, weight_specs
from precast.builder.passes.base import run_passes
from precast.builder.passes.pipeline import PIPELINE
from precast.builder.plan import plan_build
from precast.builder.progress import ProgressCallback, ignore_progress
from precast.checkpoints.checkpoint import Checkpoint
from precast.checkpoints.engine_manifest import EngineManifest, RankFiles
from precast.checkpoints.engine_writer import EngineWriter

RANK_DIR = "rank0"
TOKENIZER_DIR = "tokenizer"


def build_engine(
    checkpoint: Checkpoint,
    output_dir: str | os.PathLike[str],
    config: BuildConfig = BuildConfig(),  # noqa: B008 - frozen
    *,
    backend: str = "onnxruntime",
    dump_graphs: Path | None = None,
    progress: ProgressCallback | None = None,
    overwrite: bool = False,
) -> EngineManifest:
    """Build an engine directory, complete or not at all.

    Host memory is bounded by the largest weight, not by the model. The same inputs give the same bytes.

    Args:
        checkpoint: Open; it stays the caller's to close.
        output_dir: Made by this call; must not exist, be empty, or hold an engine if `overwrite`.
        config: See BuildConfig.
        backend: One of backends.BACKENDS.
        dump_graphs: A directory for the graph as emitted and after every pass, as text and as ONNX.
        progress: Told the bytes of weights that are done.
        overwrite: Replace an engine at `output_dir`, in one step.

    Returns:
        The manifest as written.

    Raises:
        UnsupportedModelError: the model has a feature that the builder lacks.
        BuildError: the config asks what the model cannot do, or a pass failed.
        EngineExistsError: `output_dir` is taken.
        EngineIOError: a file cannot be written.
    """
    model, lowering = checkpoint.config, get_backend(backend)
    plan = plan_build(model, config)
    network = emit_network(model, plan)
    run_passes(network, PIPELINE, dump_graphs=dump_graphs)
    with EngineWriter(output_dir, overwrite_engine=overwrite) as writer:
        rank = _write_rank(writer, network, lowering, checkpoint, progress or ignore_progress)
        _copy_files(writer, checkpoint.companion_files())
        return writer.commit(engine_manifest(model, config, plan, network, lowering, rank))


def _write_rank(
    writer: EngineWriter, network: Network, backend: Backend, checkpoint: Checkpoint, progress: ProgressCallback
) -> RankFiles:
    """Lower the network and pack its weights."""
    graph, weights = f"{RANK_DIR}/{backend.graph_file}", f"{RANK_DIR}/{WEIGHTS_LOCATION}"
    with writer.open_weights(weights, weight_specs(network)) as weights_file:
        offsets = {tensor.spec.name: tensor.offset for tensor in weights_file.index.tensors}
        (writer.path / graph).write_bytes(backend.lower(network, offsets))
        pack_weights(network, checkpoint, weights_file, progress)
    return RankFiles(graph, weights, network.kv_groups, tuple(network.kv_caches))


def _copy_files(writer: EngineWriter, files: Sequence[Path]) -> None:
    """The checkpoint's tokenizer and configs: what running the engine needs beside it."""
    for file in files:
        writer.copy_file(file, f"{TOKENIZER_DIR}/{file.name}")
