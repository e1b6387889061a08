"""What one rank has of a model: its layers in its sizes, its rows of the vocabulary, its slice of every tensor.

    embedding.weight, lm_head.{weight,bias}   rows of a padded vocabulary
    attention.{q,k,v}.{weight,bias}           outputs: whole heads
    attention.o.weight                        inputs: whole heads
    feed_forward.{gate,up}.{weight,bias}      outputs; of experts likewise
    feed_forward.down.weight                  inputs
    attention.o.bias, feed_forward.down.bias  whole on tensor rank 0 and zeros elsewhere: ranks' products are summed
    norms                                     whole, on every rank

A part of a tensor is a range of indices of one axis, so parameters that go with the same axis (a scale of each output,
or of each group of inputs) can be divided by the same rules.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from precast.checkpoints.model_config import AttentionConfig, HeadConfig, LayerConfig, ModelConfig
from precast.checkpoints.ranks.mapping import Mapping as RankMapping
from precast.checkpoints.ranks.partition import Partition, plan_partition
from precast.checkpoints.ranks.tensor_parallel import kv_heads_of, rank_layer
from precast.checkpoints.ranks.tensor_slice import TensorSlice
from precast.checkpoints.tensor_shapes import Shape, tensor_shapes

VOCABULARY_MULTIPLE = 16
"""Rows of the vocabulary that stay together: no tile of a packed matrix has rows of two ranks."""

_VOCABULARY_TENSORS = ("embedding.weight", "lm_head.weight", "lm_head.bias")
_OUTPUTS_DIVIDED = ("q", "gate", "up")
_KV_OUTPUTS_DIVIDED = ("k", "v")
_INPUTS_DIVIDED = ("o", "down")


@dataclass(frozen=True)
class RankModel:
    """One rank's part of a model.

    Attributes:
        model: The whole model.
        layers: Index in the model -> the layer, with the sizes that this rank has of it.
        vocabulary: Its rows of the embedding and columns of the logits; the last rank's may reach beyond the
            vocabulary, which makes all ranks' parts equally large.
        slices: Canonical name -> slice, of every tensor that this rank reads.
    """

    model: ModelConfig
    partition: Partition
    rank: int
    layers: Mapping[int, LayerConfig]
    vocabulary: range
    slices: Mapping[str, TensorSlice]

    @property
    def tensor_parallel_size(self) -> int:
        return self.partition.mapping.tensor_parallel_size

    @property
    def tensor_rank(self) -> int:
        return self.partition.mapping.tensor_rank(self.rank)

    @property
    def is_first_stage(self) -> bool:
        return self.partition.is_first_stage(self.rank)

    @property
    def is_last_stage(self) -> bool:
        return self.partition.is_last_stage(self.rank)


def whole_model(model: ModelConfig) -> RankModel:
    """The part of the only rank: everything."""
    return rank_model(model, plan_partition(model, RankMapping()), 0)


def rank_model(model: ModelConfig, partition: Partition, rank: int) -> RankModel:
    """The part of a rank. `partition` is one of this model, so that its sizes divide it."""
    size = partition.mapping.tensor_parallel_size
    layers = {index: rank_layer(model.layers[index], size) for index in partition.layer_indices(rank)}
    vocabulary = vocabulary_of(model.vocab_size, size, partition.mapping.tensor_rank(rank))
    slices = dict(_slices(model, partition, rank, vocabulary))
    return RankModel(model, partition, rank, layers, vocabulary, slices)


def vocabulary_of(vocab_size: int, size: int, tensor_rank: int) -> range:
    """The rows of a rank: equally many on every rank, a multiple of VOCABULARY_MULTIPLE unless it is the only one."""
    if size == 1:
        return range(vocab_size)
    num_rows = -(-vocab_size // (size * VOCABULARY_MULTIPLE)) * VOCABULARY_MULTIPLE
    return range(tensor_rank * num_rows, (tensor_rank + 1) * num_rows)


def _slices(
    model: ModelConfig, partition: Partition, rank: int, vocabulary: range
) -> Iterator[tuple[str, TensorSlice]]:
    """The tensors of a rank, in the order of the model's."""
    indices = partition.layer_indices(rank)
    mapping = partition.mapping
    for name, shape in tensor_shapes(model).items():
        if name.startswith("layers."):
            _, number, rest = name.split(".", 2)
            if int(number) in indices:
                layer = model.layers[int(number)]
                yield name, _layer_slice(layer, rest, shape, mapping.tensor_parallel_size, mapping.tensor_rank(rank))
        elif _is_outside_layers_here(model, partition, rank, name):
            divided = name in _VOCABULARY_TENSORS
            yield name, TensorSlice((len(vocabulary), *shape[1:]), 0, vocabulary.start) if divided else _whole(shape)


def _is_outside_layers_here(model: ModelConfig, partition: Partition, rank: int, name: str) -> bool:
    """Whether the rank's stage reads a tensor that belongs to no layer: embeddings first, norm and head last."""
    if name.startswith("embedding."):
        is_head = isinstance(model.head, HeadConfig) and model.head.tied and name == "embedding.weight"
        return partition.is_first_stage(rank) or (is_head and partition.is_last_stage(rank))
    return partition.is_last_stage(rank)


def _layer_slice(layer: LayerConfig, name: str, shape: Shape, size: int, tensor_rank: int) -> TensorSlice:
    """The slice of a layer's tensor; `name` is that within the layer, such as "attention.q.weight"."""
    module, _, parameter = name.rpartition(".")
    block, _, part = module.rpartition(".")
    if size == 1 or not block:
        return _whole(shape)
    if part in _OUTPUTS_DIVIDED:
        return _share(shape, 0, size, tensor_rank)
    if part in _INPUTS_DIVIDED:
        return _share(shape, 1, size, tensor_rank) if parameter == "weight" else _once(shape, tensor_rank)
    if part in _KV_OUTPUTS_DIVIDED and isinstance(layer.mixer, AttentionConfig):
        heads, head_dim = kv_heads_of(layer.mixer, size, tensor_rank), layer.mixer.head_dim
        return TensorSlice((len(heads) * head_dim, *shape[1:]), 0, heads.start * head_dim)
    return _whole(shape)


def _whole(shape: Shape) -> TensorSlice:
    return TensorSlice(shape)


def _once(shape: Shape, tensor_rank: int) -> TensorSlice:
    return TensorSlice(shape, is_zero=tensor_rank != 0)


def _share(shape: Shape, axis: int, size: int, tensor_rank: int) -> TensorSlice:
    """The `tensor_rank`-th of `size` equal parts."""
    extent = shape[axis] // size
    return TensorSlice((*shape[:axis], extent, *shape[axis + 1 :]), axis, tensor_rank * extent)
