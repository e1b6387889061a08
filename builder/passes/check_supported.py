"""The last pass: nothing leaves the builder that the runtime does not know."""

from typing import NoReturn

import onnx_ir as ir

from precast.builder.network.network import Network
from precast.builder.passes.base import InvariantError, Pass
from precast.checkpoints.engine_kv import check_kv
from precast.checkpoints.weights_index import PLAIN_LAYOUT
from precast.plugins import SUPPORTED_LAYOUTS, SUPPORTED_OPS
from precast.plugins.domain import DOMAIN

BUILTIN_OPS = ("Add", "Gather")
"""ONNX operators an engine may hold: those that pass the row-invariance property test."""


class CheckSupported(Pass):
    """Refuse a graph with anything the runtime lacks; change nothing.

    1. A node of ONNX's own domain must be one of BUILTIN_OPS.
    2. A node of ours must be an op and version of plugins.SUPPORTED_OPS; other domains are refused.
    3. Weights are plain or in a layout of plugins.SUPPORTED_LAYOUTS, and so are the KV pools.
    4. Each KV pool has exactly one reader: it is written in place, which ONNX does not know.
    5. KV groups and pools are what the manifest can say: pools that share memory are of one layout and size.
    """

    name = "check_supported"

    def apply(self, network: Network) -> bool:
        for node in network.graph:
            _check_node(node)
        for name, recipe in network.weights.items():
            # 3.
            if recipe.layout != PLAIN_LAYOUT and recipe.layout not in SUPPORTED_LAYOUTS:
                _refuse(f"initialiser {name}", f"layout {recipe.layout}", SUPPORTED_LAYOUTS)
        readers = {value.name: len(value.uses()) for value in network.graph.inputs}
        for cache in network.kv_caches:
            if cache.layout not in SUPPORTED_LAYOUTS:
                _refuse(f"KV pool {cache.name}", f"layout {cache.layout}", SUPPORTED_LAYOUTS)
            # 4.
            if readers.get(cache.name, 0) != 1:
                raise InvariantError(f"KV pool {cache.name} has {readers.get(cache.name, 0)} readers; it must have one")
        # 5.
        try:
            check_kv(network.kv_groups, network.kv_caches)
        except ValueError as error:
            raise InvariantError(str(error)) from error
        return False


def _check_node(node: ir.Node) -> None:
    if node.domain == "":
        # 1.
        if node.op_type not in BUILTIN_OPS:
            _refuse(f"node {node.name}", f"ONNX operator {node.op_type}", BUILTIN_OPS)
        return
    # 2.
    op = versioned_op(node)
    if node.domain != DOMAIN or op not in SUPPORTED_OPS:
        _refuse(f"node {node.name}", f"op {op}", SUPPORTED_OPS)


def versioned_op(node: ir.Node) -> str:
    """How the manifest names the op of a node: "ai.precast.Linear/1"."""
    return f"{node.domain}.{node.op_type}/{node.version}"


def _refuse(culprit: str, what: str, supported: tuple[str, ...]) -> NoReturn:
    known = ", ".join(supported)
    raise InvariantError(f"{culprit} uses {what}, which the runtime does not support; supported: {known}")
