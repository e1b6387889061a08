"""The promise of every pass, kept in one place.

A pass states its precondition, changes the network in place, states its postcondition and says truthfully
whether it changed anything. Around each pass the network's integrity is checked, so a wrong rewrite is caught
where it happens; `run_passes` names the pass that failed and those that ran before it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from precast.builder.errors import BuildError
from precast.builder.network.network import Network
from precast.builder.network.text import network_text
from precast.builder.passes.dump import dump_network


class PassError(BuildError):
    """A pass failed or broke its promise; the message names it and the passes that ran before it."""


class InvariantError(Exception):
    """A pass's precondition or postcondition does not hold; the message names the node."""


class Pass(ABC):
    """One rewrite of a network, in place."""

    name: ClassVar[str]
    """In snake case: the module's name and the name in graph dumps and errors."""

    def __call__(self, network: Network) -> bool:
        """Run the pass between its checks.

        Returns:
            Whether the network was modified.

        Raises:
            InvariantError: the precondition or postcondition does not hold, or `apply` reported wrongly.
            IntegrityError: the network contradicts itself after the change.
        """
        self.requires(network)
        before = network_text(network)
        modified = self.apply(network)
        if modified != (network_text(network) != before):
            raise InvariantError(f"apply returned modified={modified}, but the network says otherwise")
        network.check_integrity()
        self.ensures(network)
        return modified

    @abstractmethod
    def apply(self, network: Network) -> bool:
        """Change the network in place and say whether it was modified."""

    def requires(self, network: Network) -> None:
        """Raise InvariantError unless the network is one that this pass can work on."""
        del network

    def ensures(self, network: Network) -> None:
        """Raise InvariantError unless the network is what this pass promises to leave."""
        del network


def run_passes(network: Network, passes: Sequence[Pass], *, dump_graphs: Path | None = None) -> None:
    """Run the passes in order; with `dump_graphs`, write the graph before the first and after each.

    Raises:
        PassError: naming the failing pass and those before it.
    """
    if dump_graphs is not None:
        dump_network(network, dump_graphs, "00_emitted")
    for index, network_pass in enumerate(passes):
        try:
            network_pass(network)
        except Exception as error:
            done = ", ".join(done_pass.name for done_pass in passes[:index]) or "none"
            raise PassError(f"pass {network_pass.name} failed (passes before it: {done}): {error}") from error
        if dump_graphs is not None:
            dump_network(network, dump_graphs, f"{index + 1:02}_{network_pass.name}")
