"""GatedActivation in NumPy: what the kernels are compared with."""

import numpy as np
from numpy.typing import NDArray

from precast.plugins.gated_activation.schema import GatedActivationAttributes


def gated_activation(
    gate_up_TI: NDArray[np.float32], attributes: GatedActivationAttributes
) -> NDArray[np.float32]:
    """[T, 2*I] -> [T, I], computed in fp64 and rounded once. `attributes` holds a known activation: silu."""
    gate_TI, up_TI = np.split(gate_up_TI.astype(np.float64), 2, axis=-1)
    with np.errstate(over="ignore", under="ignore"):
        return (gate_TI / (1.0 + np.exp(-gate_TI)) * up_TI).astype(np.float32)
