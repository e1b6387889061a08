"""Weights without a layout."""

import onnx_ir as ir

from precast.builder.network.network import DTYPES, Network
from precast.builder.weights import WeightRecipe
from precast.checkpoints.weights_index import PLAIN_LAYOUT


def plain_matrix(network: Network, packed: ir.Value, dtype: str) -> ir.Value:
    """The initialiser `packed`, which is changed in place, as a plain tensor [out_features, in_features] of `dtype`."""
    name = str(packed.name)
    recipe = network.weights[name]
    if recipe.layout != PLAIN_LAYOUT:
        plain = WeightRecipe(PLAIN_LAYOUT, recipe.sources, dtype)
        network.weights[name] = plain
        packed.dtype = DTYPES[plain.graph_dtype]
        packed.shape = ir.Shape(plain.graph_shape)
    return packed
