"""RmsNorm in NumPy: what the kernels are compared with."""

import numpy as np
from numpy.typing import NDArray

from precast.plugins.rms_norm.schema import RmsNormAttributes


def rms_norm(
    x_TH: NDArray[np.float32],
    weight_H: NDArray[np.float32],
    attributes: RmsNormAttributes,
    residual_TH: NDArray[np.float32] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The outputs (y, sum), both [T, H]; without a residual `sum` is `x_TH` itself. Squares are summed in fp64."""
    sum_TH = x_TH if residual_TH is None else x_TH + residual_TH
    mean_of_squares_T1 = np.mean(np.square(sum_TH, dtype=np.float64), axis=-1, keepdims=True)
    scale_T1 = (1.0 / np.sqrt(mean_of_squares_T1 + attributes.epsilon)).astype(np.float32)
    return sum_TH * scale_T1 * weight_H, sum_TH
