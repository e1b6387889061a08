"""GatedActivation in NumPy: what the kernels are compared with."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from precast.plugins.gated_activation.schema import GatedActivationAttributes

Float64 = NDArray[np.float64]


def _silu(x: Float64) -> Float64:
    with np.errstate(over="ignore", under="ignore"):
        y: Float64 = x / (1.0 + np.exp(-x))
    return y


_ACTIVATIONS: dict[str, Callable[[Float64], Float64]] = {"silu": _silu}


def gated_activation(gate_up_TI: NDArray[np.float32], attributes: GatedActivationAttributes) -> NDArray[np.float32]:
    """[T, 2*I] -> [T, I], computed in fp64 and rounded once."""
    gate_TI, up_TI = np.split(gate_up_TI.astype(np.float64), 2, axis=-1)
    return (_ACTIVATIONS[attributes.activation](gate_TI) * up_TI).astype(np.float32)
