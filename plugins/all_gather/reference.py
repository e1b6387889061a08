"""AllGather in NumPy: what the kernels are compared with, bit for bit."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from precast.plugins.all_gather.schema import EVERY_RANK, AllGatherAttributes


def all_gather(
    x_NRL: Sequence[NDArray[np.float32]], attributes: AllGatherAttributes
) -> tuple[NDArray[np.float32], ...]:
    """The inputs of ranks 0 to N - 1, each [R, L] -> their outputs: [R, F] for the root, or for every one, and [0, F]
    for the others.

    ValueError: another number of inputs than num_ranks, of different shapes, or with fewer columns than num_features.
    """
    if len(x_NRL) != attributes.num_ranks:
        raise ValueError(f"AllGather: {len(x_NRL)} inputs for num_ranks {attributes.num_ranks}")
    if len({x_RL.shape for x_RL in x_NRL}) != 1:
        raise ValueError(f"AllGather: inputs of different shapes: {[list(x_RL.shape) for x_RL in x_NRL]}")
    joined = np.concatenate(x_NRL, axis=1)
    if joined.shape[1] < attributes.num_features:
        raise ValueError(f"AllGather: {joined.shape[1]} columns for num_features {attributes.num_features}")
    rows = joined[:, : attributes.num_features]
    return tuple(rows if attributes.root in (rank, EVERY_RANK) else rows[:0] for rank in range(attributes.num_ranks))
