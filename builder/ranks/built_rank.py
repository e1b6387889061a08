"""One rank of an engine: emit its network, rewrite it, lower it, pack its weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from precast.builder.backends.base import Backend
from precast.builder.network.decoder import emit_network
from precast.builder.network.onnx_model import WEIGHTS_LOCATION
from precast.builder.packing import pack_weights, weight_specs
from precast.builder.passes.base import run_passes
from precast.builder.passes.pipeline import PIPELINE
from precast.builder.plan import BuildPlan
from precast.builder.progress import ProgressCallback
from precast.builder.requirements import requirements
from precast.checkpoints.checkpoint import Checkpoint, RankTensors
from precast.checkpoints.engine_manifest import FileEntry, RankFiles
from precast.checkpoints.ranks.rank_model import RankModel
from precast.checkpoints.weights_index import TensorSpec
from precast.checkpoints.weights_writer import WeightsWriter


@dataclass(frozen=True)
class BuiltRank:
    """What the manifest says of a rank whose files are written.

    Attributes:
        files: Its paths and its KV caches.
        requires: The versioned ops and layouts that its graph needs.
        weights: Size and hash of its weights file.
    """

    files: RankFiles
    requires: tuple[str, ...]
    weights: FileEntry


class EngineFiles(Protocol):
    """Where the files of an engine are written."""

    @property
    def path(self) -> Path: ...
    def open_weights(self, path: str, specs: Sequence[TensorSpec]) -> WeightsWriter: ...


def build_rank(
    checkpoint: Checkpoint,
    rank: RankModel,
    plan: BuildPlan,
    backend: Backend,
    output: EngineFiles,
    *,
    dump_graphs: Path | None,
    progress: ProgressCallback,
) -> BuiltRank:
    """Write rank<i>/ below `output.path`. Of the checkpoint only this rank's slices are read; its model is one that
    `check_implemented` accepts.

    Args:
        dump_graphs: A directory for the graph as emitted and after every pass.
        progress: Told the bytes of weights that are done.

    Raises:
        BuildError: a pass failed.
        OSError: a file cannot be written; it has its name.
    """
    network = emit_network(rank, plan)
    run_passes(network, PIPELINE, dump_graphs=dump_graphs)
    graph, weights = f"rank{rank.rank}/{backend.graph_file}", f"rank{rank.rank}/{WEIGHTS_LOCATION}"
    with output.open_weights(weights, weight_specs(network)) as weights_file:
        offsets = {tensor.spec.name: tensor.offset for tensor in weights_file.index.tensors}
        (output.path / graph).write_bytes(backend.lower(network, offsets))
        pack_weights(network, RankTensors(checkpoint, rank), weights_file, progress)
    entry = weights_file.finish() if weights_file.entry is None else weights_file.entry
    files = RankFiles(graph, weights, network.kv_groups, tuple(network.kv_caches))
    return BuiltRank(files, requirements(network), entry)
