"""Weight recipes: where the bytes of each initialiser come from.

While a network is emitted and rewritten its initialisers carry no data. A recipe beside each says which
checkpoint tensors make it and in which layout it is stored, so passes can merge weights of any size without
reading one, and packing later reads them one at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from precast.builder.errors import BuildError
from precast.checkpoints.rope import RopeConfig, rope_rows, rope_table
from precast.checkpoints.tensor_info import NUMPY_DTYPES
from precast.checkpoints.weights_index import DTYPE_BYTES, PLAIN_LAYOUT
from precast.plugins.linear.pack import pack, packed_size


class Tensors(Protocol):
    """Tensors by canonical name, in the shapes that the network was emitted for: RankTensors, or a whole Checkpoint."""

    def tensor(self, name: str, /) -> NDArray[Any]: ...


@dataclass(frozen=True)
class CheckpointTensor:
    """A tensor of the checkpoint, by canonical name."""

    name: str
    shape: tuple[int, ...]

    def read(self, checkpoint: Tensors) -> NDArray[np.generic]:
        tensor = checkpoint.tensor(self.name)
        if tensor.shape != self.shape:
            raise BuildError(
                f"{self.name} has shape {list(tensor.shape)}, the network was emitted for {list(self.shape)}"
            )
        return tensor

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Zeros:
    """Zeros, such as the bias of a Linear that has none and is merged with one that has."""

    shape: tuple[int, ...]

    def read(self, checkpoint: Tensors) -> NDArray[np.generic]:
        del checkpoint
        return np.zeros(self.shape, np.float32)

    def __str__(self) -> str:
        return f"zeros{list(self.shape)}"


@dataclass(frozen=True)
class RopeFrequencies:
    """The rows of a RopeTable, which follow from the model config and the engine's longest sequence."""

    rope: RopeConfig
    max_seq_len: int

    @property
    def shape(self) -> tuple[int, ...]:
        rows, _ = rope_rows(self.rope, self.max_seq_len)
        return (rows, self.rope.rotary_dim // 2)

    def read(self, checkpoint: Tensors) -> NDArray[np.generic]:
        del checkpoint
        return rope_table(self.rope, self.max_seq_len).frequencies

    def __str__(self) -> str:
        return f"rope{list(self.shape)}"


WeightSource = CheckpointTensor | Zeros | RopeFrequencies


class Recipe(Protocol):
    """How the bytes of one initialiser are made, and what the graph and the weights file say of it."""

    @property
    def layout(self) -> str:
        """PLAIN_LAYOUT, or the versioned name of a packed layout."""

    @property
    def sources(self) -> tuple[WeightSource, ...]: ...

    @property
    def shape(self) -> tuple[int, ...]:
        """The logical shape."""

    @property
    def graph_dtype(self) -> str:
        """A key of network.DTYPES."""

    @property
    def graph_shape(self) -> tuple[int, ...]: ...

    @property
    def stored_dtype(self) -> str:
        """As the weights file's index has it."""

    @property
    def stored_shape(self) -> tuple[int, ...]: ...

    @property
    def size_bytes(self) -> int: ...

    def materialise(self, checkpoint: Tensors) -> NDArray[Any]:
        """The bytes, as `stored_dtype` of `stored_shape`."""


@dataclass(frozen=True)
class WeightRecipe:
    """One initialiser: its sources, concatenated along their first axis, in a layout.

    Attributes:
        layout: PLAIN_LAYOUT, stored as `dtype` of `shape`; or a packed layout of a matrix [out_features, in_features],
            stored as uint8 of `size_bytes`.
        sources: at least one; equal in all axes but the first.
        dtype: of a plain one: a key of NUMPY_DTYPES. What a packed one holds, its layout says.
    """

    layout: str
    sources: tuple[WeightSource, ...]
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if len({source.shape[1:] for source in self.sources}) != 1:
            raise ValueError(f"sources differ beyond their first axis: {[source.shape for source in self.sources]}")
        if self.layout != PLAIN_LAYOUT and len(self.shape) != 2:
            raise ValueError(f"layout {self.layout} packs matrices, not a tensor of shape {list(self.shape)}")

    @property
    def shape(self) -> tuple[int, ...]:
        """The logical shape: [out_features, in_features] of a packed matrix."""
        return (sum(source.shape[0] for source in self.sources), *self.sources[0].shape[1:])

    @property
    def graph_dtype(self) -> str:
        return self.stored_dtype

    @property
    def graph_shape(self) -> tuple[int, ...]:
        return self.stored_shape

    @property
    def stored_dtype(self) -> str:
        return self.dtype if self.layout == PLAIN_LAYOUT else "uint8"

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape that the graph and the weights file's index give it."""
        return self.shape if self.layout == PLAIN_LAYOUT else (self.size_bytes,)

    @property
    def size_bytes(self) -> int:
        if self.layout == PLAIN_LAYOUT:
            return DTYPE_BYTES[self.dtype] * prod(self.shape)
        return packed_size(self.layout, *self.shape)

    def materialise(self, checkpoint: Tensors) -> NDArray[Any]:
        """Read the sources and lay them out: the bytes of the initialiser."""
        parts = [source.read(checkpoint) for source in self.sources]
        if self.layout != PLAIN_LAYOUT:
            return pack(self.layout, parts)
        plain = np.empty(self.shape, NUMPY_DTYPES[self.dtype])
        start = 0
        for source, part in zip(self.sources, parts, strict=True):
            with np.errstate(over="ignore"):  # said below
                plain[start : start + len(part)] = part
            if self.dtype == "float16":
                _check_float16(source, part, plain[start : start + len(part)])
            start += len(part)
        return plain


def _check_float16(source: WeightSource, part: NDArray[Any], rounded: NDArray[Any]) -> None:
    """Raise BuildError where a number became infinite: float16 ends at 65504, the other dtypes do not."""
    if not np.isfinite(rounded).all() and np.isfinite(part).all():
        raise BuildError(f"{source} holds numbers beyond 65504, the largest of float16: build with dtype bfloat16")


def concatenate(recipes: Sequence[Recipe]) -> WeightRecipe:
    """The recipe of the given initialisers, which are WeightRecipes of one layout, joined along their first axis."""
    (layout,) = {recipe.layout for recipe in recipes}
    return WeightRecipe(layout, tuple(source for recipe in recipes for source in recipe.sources))
