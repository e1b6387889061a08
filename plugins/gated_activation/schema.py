"""GatedActivation, version 1: the element-wise middle of a gated feed-forward block.

    output[t,i] = activation(gate_up[t,i]) * gate_up[t,I+i]

T = tokens (rows), I = intermediate size.

Input
    gate_up     float32 [T, 2*I]   the gate's columns, then the up projection's
Output
    output      float32 [T, I]
Attributes
    activation  string             "silu": x / (1 + exp(-x))

Everything is fp32, each element on its own. exp is within 2 units in the last place; below about -104 it is 0, above
about 88.7 infinity, so silu(x) tends to -0 for very negative x, and silu(-infinity) is NaN, as in PyTorch.
Kernel levels differ in the rounding of exp: avx2 and avx512 compute it with fused multiply-adds, portable without.

On devices gate_up and output are bfloat16 or float16; what is between is fp32 and rounded once. exp and the quotient
are the device's own: exp(x) has a relative error of up to about |x| * 1e-7, of which 16 bits show little.

Source: Shazeer, "GLU Variants Improve Transformer", 2020, https://arxiv.org/abs/2002.05202 (SwiGLU).
"""

from dataclasses import dataclass

from precast.plugins import domain

DOMAIN = domain.DOMAIN
NAME = "GatedActivation"
VERSION = 1
ACTIVATIONS = ("silu",)


@dataclass(frozen=True)
class GatedActivationAttributes:
    """The op's attributes. Raises ValueError where they make no sense."""

    activation: str

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"GatedActivation: activation is {self.activation!r}; version {VERSION} knows {', '.join(ACTIVATIONS)}"
            )
