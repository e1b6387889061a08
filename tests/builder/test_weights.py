from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from precast.builder.errors import BuildError
from precast.builder.weights import CheckpointTensor, RopeFrequencies, WeightRecipe, Zeros, concatenate
from precast.checkpoints.rope import DynamicScaling, RopeConfig, rope_table
from precast.plugins.linear.pack import unpack


class Tensors:
    """Stands in for a checkpoint."""

    def __init__(self, **tensors: NDArray[Any]) -> None:
        self.tensors = tensors

    def tensor(self, name: str) -> NDArray[Any]:
        return self.tensors[name]


def test_a_plain_weight_is_float32() -> None:
    recipe = WeightRecipe("plain", (CheckpointTensor("norm", (3,)),))
    assert (recipe.shape, recipe.stored_shape, recipe.stored_dtype, recipe.size_bytes) == ((3,), (3,), "float32", 12)
    stored = recipe.materialise(Tensors(norm=np.array([1, 2, 3], ml_dtypes.bfloat16)))
    assert stored.dtype == np.float32
    assert stored.tolist() == [1, 2, 3]


def test_sources_are_concatenated_along_the_first_axis() -> None:
    recipe = WeightRecipe("plain", (CheckpointTensor("b", (2,)), Zeros((1,))))
    assert recipe.shape == (3,)
    stored = recipe.materialise(Tensors(b=np.array([1, 2], np.float16)))
    assert stored.tolist() == [1, 2, 0]


@pytest.mark.parametrize(("max_seq_len", "rows"), [(8, 1), (16, 1), (17, 2), (20, 5)])
def test_rope_frequencies_are_the_rows_of_the_table(max_seq_len: int, rows: int) -> None:
    rope = RopeConfig(10000.0, 4, DynamicScaling(2.0, 16))
    recipe = WeightRecipe("plain", (RopeFrequencies(rope, max_seq_len),))
    stored = recipe.materialise(Tensors())
    assert recipe.shape == stored.shape == (rows, 2)
    np.testing.assert_array_equal(stored, rope_table(rope, max_seq_len).frequencies)


@pytest.mark.parametrize("layout", ["x16k1.f32/1", "x16k2.bf16/1"])
def test_a_packed_weight_is_bytes(layout: str) -> None:
    parts = [np.arange(21, dtype=np.float32).reshape(3, 7), np.arange(14, dtype=np.float32).reshape(2, 7)]
    recipe = WeightRecipe(layout, (CheckpointTensor("a", (3, 7)), CheckpointTensor("b", (2, 7))))
    stored = recipe.materialise(Tensors(a=parts[0], b=parts[1]))
    assert recipe.stored_dtype == stored.dtype == "uint8"
    assert recipe.stored_shape == stored.shape == (recipe.size_bytes,)
    np.testing.assert_array_equal(unpack(layout, stored.view(np.uint8), 5, 7), np.concatenate(parts))


def test_concatenated_recipes_keep_the_order_of_their_sources() -> None:
    recipes = [WeightRecipe("x16k1.f32/1", (CheckpointTensor(name, (4, 8)),)) for name in "cab"]
    merged = concatenate(recipes)
    assert merged.shape == (12, 8)
    assert [str(source) for source in merged.sources] == ["c", "a", "b"]


def test_recipes_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^sources differ beyond their first axis: \[\(2, 3\), \(2, 4\)\]$"):
        WeightRecipe("x16k1.f32/1", (Zeros((2, 3)), Zeros((2, 4))))
    with pytest.raises(ValueError, match=r"^layout x16k1\.f32/1 packs matrices, not a tensor of shape \[4\]$"):
        WeightRecipe("x16k1.f32/1", (Zeros((4,)),))


def test_a_tensor_of_another_shape_than_planned_is_refused() -> None:
    recipe = WeightRecipe("x16k1.f32/1", (CheckpointTensor("w", (4, 8)),))
    with pytest.raises(BuildError, match=r"^w has shape \[8, 4\], the network was emitted for \[4, 8\]$"):
        recipe.materialise(Tensors(w=np.zeros((8, 4), np.float32)))


def test_a_plain_tensor_may_be_of_16_bits() -> None:
    recipe = WeightRecipe("plain", (CheckpointTensor("a", (2, 3)), CheckpointTensor("b", (1, 3))), "bfloat16")
    assert (recipe.stored_dtype, recipe.stored_shape, recipe.size_bytes) == ("bfloat16", (3, 3), 18)
    tensors: dict[str, NDArray[Any]] = {
        "a": np.full((2, 3), 1.00390625, np.float32),
        "b": np.full((1, 3), 2, np.float16),
    }
    array = recipe.materialise(Tensors(**tensors))
    assert array.dtype == ml_dtypes.bfloat16
    assert array.astype(np.float32).tolist() == [[1, 1, 1], [1, 1, 1], [2, 2, 2]]  # ties to even


def test_what_float16_cannot_hold_is_refused() -> None:
    recipe = WeightRecipe("plain", (CheckpointTensor("big", (2,)),), "float16")
    tensors = {"big": np.array([1, 1e5], ml_dtypes.bfloat16)}
    with pytest.raises(BuildError, match=r"^big holds numbers beyond 65504, the largest of float16: build with "):
        recipe.materialise(Tensors(**tensors))
    tensors["big"] = np.array([1, np.inf], ml_dtypes.bfloat16)  # of the checkpoint's own making
    assert np.isinf(recipe.materialise(Tensors(**tensors))[1])
