"""What a backend is: it turns a finished network into the file that its runtime session loads."""

from collections.abc import Mapping
from typing import Protocol

from precast.builder.network.network import Network
from precast.checkpoints.engine_manifest import OnnxRuntimeRequirements


class Backend(Protocol):
    """One way to run a network."""

    @property
    def name(self) -> str:
        """As in the manifest and in the registry."""

    @property
    def graph_file(self) -> str:
        """Name of the lowered graph in a rank's directory."""

    @property
    def requirements(self) -> OnnxRuntimeRequirements:
        """What the lowered graph needs of the library that runs it."""

    @property
    def batch_invariant(self) -> bool:
        """Whether a request's tokens are the same bits whatever runs beside it."""

    @property
    def reproducible(self) -> bool:
        """Whether lowering the same network twice gives the same bytes."""

    def lower(self, network: Network, weight_offsets: Mapping[str, int]) -> bytes:
        """The graph file. Weights stay in the weights file, each at its offset in bytes."""
