"""What the device kernel of GatedActivation is specialised by."""

from dataclasses import dataclass

from precast.plugins.device.op_fields import check_dtype
from precast.plugins.gated_activation.schema import NAME, GatedActivationAttributes

MAX_FEATURES = 1 << 24
"""A row of gate_up is addressed with 32 bits; and the tiles of a row are an axis of the grid, at most 65535."""


@dataclass(frozen=True)
class GatedActivationFields:
    """The op's attribute, I, and the dtype of gate_up and the output. Raises ValueError where they make no sense."""

    activation: str
    num_features: int
    dtype: str

    def __post_init__(self) -> None:
        GatedActivationAttributes(self.activation)
        check_dtype(NAME, self.dtype)
        if not 1 <= self.num_features <= MAX_FEATURES:
            raise ValueError(f"{NAME}: {self.num_features} features; the device kernel does 1 to {MAX_FEATURES}")
