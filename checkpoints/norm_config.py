"""Normalisation layers."""

from dataclasses import dataclass

from precast.checkpoints.config_checks import require_one_of, require_positive

NORM_KINDS = ("rms", "layer")


@dataclass(frozen=True)
class NormConfig:
    """A norm over the last axis.

    Attributes:
        epsilon: Added to the mean square ("rms") or the variance ("layer") before the root.
        kind: "rms": x / sqrt(mean(x^2) + epsilon). "layer": the same of x - mean(x).
        weight: Whether the result is multiplied by a learned vector.
        weight_offset: Added to that vector; 1.0 where it is stored zero-centred (Gemma, Nemotron).
        bias: Whether a learned vector is added.
    """

    epsilon: float
    kind: str = "rms"
    weight: bool = True
    weight_offset: float = 0.0
    bias: bool = False

    def __post_init__(self) -> None:
        require_positive(self, "epsilon")
        require_one_of(self, "kind", NORM_KINDS)
