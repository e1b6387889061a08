"""GreedyTokens in NumPy: what the kernels are compared with."""

import numpy as np
from numpy.typing import NDArray


def greedy_tokens(logits_RV: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The outputs (tokens, log_sums), both [R]. Sums are fp64."""
    has_nan_R = np.isnan(logits_RV).any(axis=-1)
    tokens_R = np.where(has_nan_R, logits_RV.shape[1], logits_RV.argmax(axis=-1))
    max_R1 = logits_RV.max(axis=-1, keepdims=True).astype(np.float64)
    base_R1 = np.where(max_R1 == -np.inf, 0.0, max_R1)  # a row of only -inf has no -inf - -inf
    with np.errstate(invalid="ignore", divide="ignore"):
        log_sums_R1 = max_R1 + np.log(np.exp(logits_RV - base_R1).sum(axis=-1, keepdims=True))
    return tokens_R.astype(np.int32), log_sums_R1[:, 0].astype(np.float32)
