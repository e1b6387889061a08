"""Reading a slice of a tensor that lies in parts."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from precast.checkpoints.ranks.stored_tensor import Part, StoredTensor
from precast.checkpoints.ranks.tensor_slice import TensorSlice
from precast.checkpoints.tensor_info import TensorInfo


class Files:
    """Arrays by name, and which were read and released."""

    def __init__(self, **arrays: NDArray[Any]) -> None:
        self.arrays = arrays
        self.read: list[str] = []
        self.released: list[str] = []

    def info(self, name: str) -> TensorInfo:
        array = self.arrays[name]
        return TensorInfo(array.dtype.name, array.shape, array.nbytes)

    def tensor(self, name: str) -> NDArray[Any]:
        self.read.append(name)
        return self.arrays[name]

    def release(self, name: str) -> None:
        self.released.append(name)


WHOLE = np.arange(60, dtype=np.float32).reshape(10, 6)


def test_one_piece_is_a_view() -> None:
    files = Files(a=WHOLE)
    tensor = StoredTensor.whole("a", (10, 6))
    for wanted, expected in [
        (TensorSlice((10, 6)), WHOLE),
        (TensorSlice((4, 6), 0, 3), WHOLE[3:7]),
        (TensorSlice((10, 2), 1, 4), WHOLE[:, 4:]),
    ]:
        read = tensor.read(files, wanted)
        np.testing.assert_array_equal(read, expected)
        assert np.shares_memory(read, WHOLE)
    assert tensor.info(files) == TensorInfo("float32", (10, 6), 240)


def test_beyond_the_tensor_there_are_zeros() -> None:
    files = Files(a=WHOLE)
    tensor = StoredTensor.whole("a", (10, 6))
    read = tensor.read(files, TensorSlice((4, 6), 0, 8))
    np.testing.assert_array_equal(read, np.concatenate([WHOLE[8:], np.zeros((2, 6))]))
    np.testing.assert_array_equal(tensor.read(files, TensorSlice((4, 6), 0, 10)), np.zeros((4, 6)))
    np.testing.assert_array_equal(tensor.read(files, TensorSlice((4, 6), 0, 16)), np.zeros((4, 6)))


def test_a_slice_that_another_rank_has_is_not_read() -> None:
    files = Files(a=WHOLE.astype(ml_dtypes.bfloat16))
    zeros = StoredTensor.whole("a", (10, 6)).read(files, TensorSlice((10, 6), is_zero=True))
    assert zeros.dtype == ml_dtypes.bfloat16
    assert not zeros.any()
    assert files.read == []


def test_only_the_parts_that_are_wanted_are_read() -> None:
    files = Files(a=WHOLE[:4], b=WHOLE[4:8], c=WHOLE[8:])
    tensor = StoredTensor((10, 6), (Part("a", 0, 4), Part("b", 4, 8), Part("c", 8, 10)))
    b = tensor.read(files, TensorSlice((4, 6), 0, 4))
    assert files.read == ["b"]
    assert np.shares_memory(b, WHOLE)
    np.testing.assert_array_equal(tensor.read(files, TensorSlice((4, 6), 0, 6)), WHOLE[6:])
    assert files.read == ["b", "b", "c"]
    tensor.release(files)
    assert files.released == ["a", "b", "c"]


@pytest.mark.parametrize(
    "parts",
    [
        (),
        (Part("a", 0, 4),),
        (Part("a", 0, 4), Part("b", 5, 10)),
        (Part("a", 0, 6), Part("b", 4, 10)),
        (Part("a", 0, 11),),
    ],
)
def test_parts_cover_the_tensor_once(parts: tuple[Part, ...]) -> None:
    with pytest.raises(ValueError, match="parts"):
        StoredTensor((10, 6), parts)


@given(data=st.data())
def test_any_slice_of_any_division(data: st.DataObject) -> None:
    """Parts may be fused with others' data in front and behind, and slices may go along the other axis."""
    axis = data.draw(st.integers(0, 1))
    extent = WHOLE.shape[axis]
    cuts = sorted(data.draw(st.sets(st.integers(1, extent - 1), max_size=3)))
    arrays, parts = {}, []
    for start, stop in zip((0, *cuts), (*cuts, extent), strict=True):
        offset, behind = data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2))
        piece = WHOLE.take(range(start, stop), axis)
        padding = [(0, 0), (0, 0)]
        padding[axis] = (offset, behind)
        arrays[f"part{start}"] = np.pad(piece, padding, constant_values=-1)
        parts.append(Part(f"part{start}", start, stop, offset))
    tensor = StoredTensor((10, 6), tuple(parts), axis)

    wanted_axis = data.draw(st.integers(0, 1))
    start = data.draw(st.integers(0, WHOLE.shape[wanted_axis] + 2))
    count = data.draw(st.integers(1, 12))
    shape = (count, 6) if wanted_axis == 0 else (10, count)
    padded = np.zeros((30, 30), np.float32)
    padded[:10, :6] = WHOLE
    expected = padded.take(range(start, start + count), wanted_axis)
    expected = expected[:, :6] if wanted_axis == 0 else expected[:10]
    np.testing.assert_array_equal(tensor.read(Files(**arrays), TensorSlice(shape, wanted_axis, start)), expected)
