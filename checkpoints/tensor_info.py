"""What is known of a stored tensor without reading it."""

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
"""The dtypes that weights may have, by the name that configs and manifests use."""


@dataclass(frozen=True)
class TensorInfo:
    """A stored tensor.

    Attributes:
        dtype: A key of `NUMPY_DTYPES`, or the file format's own name of a dtype that cannot be read.
        nbytes: Size of its data.
    """

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
