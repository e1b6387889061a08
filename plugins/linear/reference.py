"""Linear in NumPy: what the kernels are compared with."""

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from precast.plugins.layouts import TILE_OUTPUTS, weight_layout
from precast.plugins.linear.pack import unpack
from precast.plugins.linear.schema import LinearAttributes

_OUTPUTS_AT_ONCE = 64 * TILE_OUTPUTS


def linear(
    x_TK: NDArray[np.float32],
    weight: NDArray[np.uint8],
    attributes: LinearAttributes,
    bias_N: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """[T, K] -> [T, N]: x rounded as the layout asks, then everything in fp64, rounded once. Leading axes may be many.

    ValueError: x or the packed weight does not have the size that `attributes` give.
    """
    if x_TK.shape[-1] != attributes.in_features:
        raise ValueError(f"Linear: x is {list(x_TK.shape)}; its rows must have {attributes.in_features} elements")
    if weight.size != attributes.weight_size_bytes:
        raise ValueError(f"Linear: the weight has {weight.size} bytes, not {attributes.weight_size_bytes}")
    layout = weight_layout(attributes.layout)
    if layout.dtype != "float32":
        x_TK = x_TK.astype(ml_dtypes.bfloat16 if layout.dtype == "bfloat16" else np.float16)
    x64_TK = x_TK.astype(np.float64)
    y_TN = np.empty((*x_TK.shape[:-1], attributes.out_features), np.float32)
    bytes_per_output = layout.packed_size(TILE_OUTPUTS, attributes.in_features) // TILE_OUTPUTS
    for first in range(0, attributes.out_features, _OUTPUTS_AT_ONCE):
        outputs = slice(first, min(first + _OUTPUTS_AT_ONCE, attributes.out_features))
        packed = weight[first * bytes_per_output : (first + _OUTPUTS_AT_ONCE) * bytes_per_output]
        w_NK = unpack(layout.name, packed, outputs.stop - first, attributes.in_features)
        y_TN[..., outputs] = x64_TK @ w_NK.astype(np.float64).T + (0.0 if bias_N is None else bias_N[outputs])
    return y_TN
