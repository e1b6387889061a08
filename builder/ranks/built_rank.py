"""One rank of an engine: emit its network, rewrite it, write its files."""

from dataclasses import dataclass
from pathlib import Path

from precast.builder.backends.base import Backend, EngineFiles
from precast.builder.network.decoder import emit_network
from precast.builder.passes.base import run_passes
from precast.builder.plan import BuildPlan
from precast.builder.progress import ProgressCallback
from precast.builder.requirements import requirements
from precast.checkpoints.checkpoint import Checkpoint, RankTensors
from precast.checkpoints.engine_manifest import FileEntry, RankFiles
from precast.checkpoints.ranks.rank_model import RankModel


@dataclass(frozen=True)
class BuiltRank:
    """What the manifest says of a rank whose files are written.

    Attributes:
        files: Its paths and its KV caches.
        requires: The versioned ops and layouts that its graph needs.
        weights: Size and hash of its weights file; None where it has none.
    """

    files: RankFiles
    requires: tuple[str, ...]
    weights: FileEntry | None


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
        BuildError: a pass or the backend failed.
        OSError: a file cannot be written; it has its name.
    """
    network = emit_network(rank, plan)
    run_passes(network, backend.passes(plan), dump_graphs=dump_graphs)
    tensors = RankTensors(checkpoint, rank)
    written = backend.write(network, tensors, f"rank{rank.rank}", output, plan, progress)
    files = RankFiles(
        written.graph, written.weights, network.kv_groups, tuple(network.kv_caches), written.network_sha256
    )
    return BuiltRank(files, requirements(network), written.weights_entry)
