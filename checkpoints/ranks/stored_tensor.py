"""Where a tensor of the model lies in weight files: in one piece, or in parts along an axis, one or more a rank."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from precast.checkpoints.ranks.tensor_slice import TensorSlice
from precast.checkpoints.tensor_info import NUMPY_DTYPES, TensorInfo


class TensorFiles(Protocol):
    """Tensors by the names that the files use; see WeightFiles."""

    def info(self, name: str, /) -> TensorInfo: ...
    def tensor(self, name: str, /) -> NDArray[Any]: ...
    def release(self, name: str, /) -> None: ...


@dataclass(frozen=True)
class Part:
    """A range of a tensor's axis, and which tensor of the files holds it.

    Attributes:
        file_tensor: Its name in the files.
        start, stop: The range, in indices of the whole tensor.
        offset: Index of `start` in the file's tensor along the same axis; not 0 where that holds more, as queries,
            keys and values that are stored as one matrix.
        copies: Other tensors of the files that hold the same at the same offset, on other ranks.
    """

    file_tensor: str
    start: int
    stop: int
    offset: int = 0
    copies: tuple[str, ...] = ()

    def nearest(self, rank: int | None) -> str:
        """The copy that lies in a rank's file, else the first one."""
        near = [name for name in (self.file_tensor, *self.copies) if name.startswith(f"rank{rank}/")]
        return near[0] if near else self.file_tensor


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of the model.

    Attributes:
        shape: Of the whole tensor.
        parts: Ascending along `axis`, from 0 to the extent without gaps or overlaps.
    """

    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    axis: int = 0

    def __post_init__(self) -> None:
        end = 0
        for part in self.parts:
            if part.start != end or part.stop <= part.start:
                raise ValueError(f"{part.file_tensor}: parts must follow each other from index {end}, got {part}")
            end = part.stop
        if end != self.shape[self.axis]:
            raise ValueError(f"parts end at {end}, the tensor of shape {list(self.shape)} at {self.shape[self.axis]}")

    @classmethod
    def whole(cls, file_tensor: str, shape: tuple[int, ...]) -> "StoredTensor":
        """A tensor that lies in one piece."""
        return cls(shape, (Part(file_tensor, 0, shape[0]),))

    def info(self, files: TensorFiles) -> TensorInfo:
        """Dtype, shape and size of the whole tensor. All parts have one dtype."""
        dtype = files.info(self.parts[0].file_tensor).dtype
        return TensorInfo(dtype, self.shape, int(np.prod(self.shape)) * NUMPY_DTYPES[dtype].itemsize)

    def read(self, files: TensorFiles, wanted: TensorSlice, rank: int | None = None) -> NDArray[Any]:
        """The slice in the stored dtype, from the files of `rank` as far as these have it.

        A read-only view where it lies in one file tensor, perhaps not dense; else a new array. Parts that lie outside
        of it are not touched, unless the tensor was stored along another axis.
        """
        if wanted.is_zero:
            return np.zeros(wanted.shape, NUMPY_DTYPES[self.info(files).dtype])
        if wanted.shape == self.shape and wanted.start == 0:
            wanted = TensorSlice(self.shape, self.axis)  # everything: along whichever axis it is stored
        if wanted.axis == self.axis:
            pieces = [_clip(self._array(files, part, rank), wanted, part.start) for part in self._overlapping(wanted)]
        else:
            pieces = [_join([_clip(self._array(files, part, rank), wanted, 0) for part in self.parts], self.axis)]
        num_missing = wanted.stop - max(wanted.start, self.shape[wanted.axis])
        if num_missing > 0:
            shape = (*wanted.shape[: wanted.axis], num_missing, *wanted.shape[wanted.axis + 1 :])
            pieces.append(np.zeros(shape, NUMPY_DTYPES[self.info(files).dtype]))
        return _join(pieces, wanted.axis)

    def release(self, files: TensorFiles) -> None:
        """Give back the memory that reading made resident."""
        for part in self.parts:
            for name in (part.file_tensor, *part.copies):
                files.release(name)

    def _overlapping(self, wanted: TensorSlice) -> list[Part]:
        return [part for part in self.parts if part.start < wanted.stop and wanted.start < part.stop]

    def _array(self, files: TensorFiles, part: Part, rank: int | None) -> NDArray[Any]:
        """What a part holds of the tensor."""
        array = files.tensor(part.nearest(rank))
        return _take(array, self.axis, part.offset, part.offset + part.stop - part.start)


def _clip(array: NDArray[Any], wanted: TensorSlice, start: int) -> NDArray[Any]:
    """The wanted indices of an array that holds those from `start` on."""
    return _take(array, wanted.axis, max(wanted.start - start, 0), wanted.stop - start)


def _take(array: NDArray[Any], axis: int, start: int, stop: int) -> NDArray[Any]:
    return array[(slice(None),) * axis + (slice(start, stop),)]


def _join(arrays: Sequence[NDArray[Any]], axis: int) -> NDArray[Any]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=axis)
