"""What a backend is: it turns a finished network into the files that its runtime session loads."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from precast.builder.network.network import Network
from precast.builder.packing import MappedTensors
from precast.builder.passes.base import Pass
from precast.builder.plan import BuildPlan
from precast.builder.progress import ProgressCallback
from precast.checkpoints.engine_manifest import BackendRequirements, FileEntry
from precast.checkpoints.weights_index import TensorSpec
from precast.checkpoints.weights_writer import WeightsWriter


class EngineFiles(Protocol):
    """Where the files of an engine are written."""

    @property
    def path(self) -> Path: ...
    def open_weights(self, path: str, specs: Sequence[TensorSpec]) -> WeightsWriter: ...


@dataclass(frozen=True)
class WrittenFiles:
    """The files of a rank, as paths relative to the engine's directory.

    Attributes:
        graph: What the session loads.
        weights: The weights file; None where the graph file holds them.
        weights_entry: Size and hash of the weights file.
        network_sha256: Of the network without its weights, where others can take their place.
    """

    graph: str
    weights: str | None
    weights_entry: FileEntry | None
    network_sha256: str | None = None


class Backend(Protocol):
    """One way to run a network."""

    @property
    def name(self) -> str:
        """As in the manifest and in the registry."""

    @property
    def batch_invariant(self) -> bool:
        """Whether a request's tokens are the same bits whatever runs beside it."""

    @property
    def reproducible(self) -> bool:
        """Whether the same inputs build the same bytes."""

    def passes(self, plan: BuildPlan) -> Sequence[Pass]:
        """From the emitted network to the one that is written."""

    def requirements(self, plan: BuildPlan) -> BackendRequirements:
        """What the files need of the library that runs them."""

    def write(
        self,
        network: Network,
        tensors: MappedTensors,
        directory: str,
        output: EngineFiles,
        plan: BuildPlan,
        progress: ProgressCallback,
    ) -> WrittenFiles:
        """Write a rank's files into `directory`, which is relative to `output.path`."""
