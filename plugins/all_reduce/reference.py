"""AllReduce in NumPy: what the kernels are compared with, bit for bit."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from precast.plugins.all_reduce.schema import AllReduceAttributes


def all_reduce(x_NTF: Sequence[NDArray[np.float32]], attributes: AllReduceAttributes) -> NDArray[np.float32]:
    """The inputs of ranks 0 to N - 1, each [T, F] -> the output of every rank, [T, F].

    ValueError: another number of inputs than num_ranks, or of different shapes.
    """
    if len(x_NTF) != attributes.num_ranks:
        raise ValueError(f"AllReduce: {len(x_NTF)} inputs for num_ranks {attributes.num_ranks}")
    y_TF: NDArray[np.float32] = x_NTF[0].copy()
    for rank, x_TF in enumerate(x_NTF[1:], 1):
        if x_TF.shape != y_TF.shape:
            raise ValueError(f"AllReduce: rank {rank} has {list(x_TF.shape)}, rank 0 has {list(y_TF.shape)}")
        y_TF += x_TF
    return y_TF
