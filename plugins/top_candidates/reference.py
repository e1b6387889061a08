"""TopCandidates in NumPy: what the kernels are compared with."""

import numpy as np
from numpy.typing import NDArray


def top_candidates(
    logits_RV: NDArray[np.float32], num_candidates: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The outputs (candidate_ids, candidate_logits), both [R, K]. Of a row with a NaN some that the schema allows."""
    ids_RK = np.argsort(-logits_RV, axis=-1, kind="stable")[:, :num_candidates]
    return ids_RK.astype(np.int32), np.take_along_axis(logits_RV, ids_RK, axis=-1)
