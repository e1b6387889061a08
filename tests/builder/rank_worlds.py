"""A rank's part of the tiny world: slices of tensors in memory."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from precast.checkpoints.ranks.rank_model import RankModel
from precast.checkpoints.ranks.stored_tensor import StoredTensor
from precast.checkpoints.tensor_info import TensorInfo
from tests.builder.worlds import RandomTensors


class Files:
    """Tensors in memory, as the files of a checkpoint."""

    def __init__(self, tensors: RandomTensors) -> None:
        self.tensor = tensors.tensor
        self.release = tensors.release

    def info(self, name: str) -> TensorInfo:
        array = self.tensor(name)
        return TensorInfo("float32", array.shape, array.nbytes)


class RandomSlices:
    """A rank's slices of tensors in memory."""

    def __init__(self, tensors: RandomTensors, rank: RankModel) -> None:
        self._files = Files(tensors)
        self._slices = rank.slices
        self.release = tensors.release

    def tensor(self, name: str) -> NDArray[np.float32]:
        stored: StoredTensor = StoredTensor.whole(name, self._files.info(name).shape)
        read: NDArray[Any] = stored.read(self._files, self._slices[name])
        return read
