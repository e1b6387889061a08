"""A network as the bytes of an ONNX model whose weights lie in another file."""

from collections.abc import Mapping

import onnx_ir as ir

from precast.builder.network.network import DTYPES, Network
from precast.builder.weights import Recipe

WEIGHTS_LOCATION = "weights.bin"


def onnx_bytes(network: Network, weight_offsets: Mapping[str, int] | None) -> bytes:
    """Serialise the graph; equal networks and offsets give equal bytes.

    Every initialiser is external data in WEIGHTS_LOCATION, beside the model.

    Args:
        network: Its graph is the same before and after.
        weight_offsets: Initialiser -> where its bytes start in the weights file. None before the file has
            been planned: the model then shows the graph, and its weights have no place yet.
    """
    initializers = network.graph.initializers
    try:
        for name, recipe in network.weights.items():
            offset = None if weight_offsets is None else weight_offsets[name]
            initializers[name].const_value = _external_tensor(name, recipe, offset)
        data: bytes = ir.to_proto(network.model).SerializeToString(deterministic=True)
        return data
    finally:
        for value in initializers.values():
            value.const_value = None


def _external_tensor(name: str, recipe: Recipe, offset: int | None) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        WEIGHTS_LOCATION,
        offset,
        None if offset is None else recipe.size_bytes,
        DTYPES[recipe.graph_dtype],
        shape=ir.Shape(recipe.graph_shape),
        name=name,
    )
