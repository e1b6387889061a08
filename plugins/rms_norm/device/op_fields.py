"""What the device kernel of RmsNorm is specialised by."""

from dataclasses import dataclass

from precast.plugins.device.op_fields import check_dtype
from precast.plugins.rms_norm.schema import NAME, RmsNormAttributes

MAX_FEATURES = 16384
"""A program holds a whole row in registers: 32 elements for each of 512 threads."""


@dataclass(frozen=True)
class RmsNormFields:
    """The op's attribute, H, whether the input residual and the output sum are there (0 or 1), and the dtype of all.

    Raises ValueError where they make no sense, or for more features than the kernel does.
    """

    num_features: int
    epsilon: float
    has_residual: int
    dtype: str

    def __post_init__(self) -> None:
        RmsNormAttributes(self.epsilon)
        check_dtype(NAME, self.dtype)
        if not 1 <= self.num_features <= MAX_FEATURES:
            raise ValueError(f"{NAME}: {self.num_features} features; the device kernel does 1 to {MAX_FEATURES}")
        if self.has_residual not in {0, 1}:
            raise ValueError(f"{NAME}: has_residual is {self.has_residual}; it must be 0 or 1")
