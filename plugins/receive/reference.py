"""Receive in NumPy."""

import numpy as np
from numpy.typing import NDArray

from precast.plugins.receive.schema import ReceiveAttributes


def receive(
    token_ids_T: NDArray[np.int32], sent_TF: NDArray[np.float32], attributes: ReceiveAttributes
) -> NDArray[np.float32]:
    """[T] and what the stage before has sent, [T, F] -> [T, F]. ValueError: that has another shape."""
    expected = (token_ids_T.size, attributes.num_features)
    if sent_TF.shape != expected:
        raise ValueError(f"Receive: expected {list(expected)}, the stage before sent {list(sent_TF.shape)}")
    y_TF: NDArray[np.float32] = sent_TF.copy()
    return y_TF
