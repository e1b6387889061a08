"""What a runtime must know to run a network."""

from precast.builder.network.network import Network
from precast.builder.passes.check_supported import versioned_op
from precast.checkpoints.weights_index import PLAIN_LAYOUT
from precast.plugins.domain import DOMAIN


def requirements(network: Network) -> tuple[str, ...]:
    """Every versioned op and layout of the network, sorted."""
    ops = {versioned_op(node) for node in network.graph if node.domain == DOMAIN}
    layouts = {recipe.layout for recipe in network.weights.values()} - {PLAIN_LAYOUT}
    kv_layouts = {cache.layout for cache in network.kv_caches}
    return tuple(sorted(ops | layouts | kv_layouts))
