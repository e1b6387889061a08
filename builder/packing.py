"""Packing: weights go from the mapped checkpoint into the weights file, one initialiser at a time."""

from typing import Protocol

from precast.builder.network.network import Network
from precast.builder.progress import ProgressCallback
from precast.builder.weights import CheckpointTensor, Recipe, Tensors
from precast.checkpoints.weights_index import TensorSpec
from precast.checkpoints.weights_writer import WeightsWriter

STAGE = "packing weights"


class MappedTensors(Tensors, Protocol):
    """Tensors of mapped files."""

    def release(self, name: str, /) -> None:
        """Give back the memory that reading a tensor made resident."""


def weight_specs(network: Network) -> list[TensorSpec]:
    """The index of the weights file: tensors in the order in which the graph reads them."""
    return [
        TensorSpec(name, recipe.stored_dtype, recipe.stored_shape, recipe.layout)
        for name, recipe in network.weights_in_execution_order()
    ]


def pack_weights(network: Network, tensors: MappedTensors, writer: WeightsWriter, progress: ProgressCallback) -> None:
    """Write every initialiser. Holds one at a time, and gives the checkpoint's pages back after each."""
    recipes = list(network.weights_in_execution_order())
    total_bytes = sum(recipe.size_bytes for _, recipe in recipes)
    done_bytes = 0
    progress(STAGE, done_bytes, total_bytes)
    for name, recipe in recipes:
        writer.write(name, recipe.materialise(tensors))
        _release(tensors, recipe)
        done_bytes += recipe.size_bytes
        progress(STAGE, done_bytes, total_bytes)


def _release(tensors: MappedTensors, recipe: Recipe) -> None:
    for source in recipe.sources:
        if isinstance(source, CheckpointTensor):
            tensors.release(source.name)
