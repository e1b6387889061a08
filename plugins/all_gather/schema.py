"""AllGather, version 1: the columns that the ranks of a stage have, side by side, on one of them or on all.

    y[t, r * L + j] = x_r[t, j]                                x_r: input of tensor rank r; N ranks

R = rows, L = columns of a rank, F = num_features.

Inputs
    x             float32 [R, L]     R and L are the same on all ranks; R >= 0
Outputs
    y             float32 [R, F]     on the rank `root`, or on every one; [0, F] on all others
Attributes
    num_ranks     int                N, the tensor parallel size; >= 2
    num_features  int                F, from 1 to N * L: columns beyond it are padding, and dropped
    root          int                the tensor rank that gets the rows, from 0 to N - 1; -1: every rank does

The CPU's op has a root and refuses -1; the plugin of TensorRT has none and refuses any other.

Values are copied, never computed with. How ranks meet, and how that fails, is as for AllReduce.
"""

from dataclasses import dataclass

from precast.plugins import domain

DOMAIN = domain.DOMAIN
NAME = "AllGather"
VERSION = 1

EVERY_RANK = -1
"""The `root` where every rank gets the rows."""


@dataclass(frozen=True)
class AllGatherAttributes:
    """The op's attributes. Raises ValueError where they make no sense."""

    num_ranks: int
    num_features: int
    root: int

    def __post_init__(self) -> None:
        if self.num_ranks < 2 or self.num_features < 1:
            raise ValueError(
                f"AllGather: num_ranks is {self.num_ranks} and num_features {self.num_features}; they must be at least "
                "2 and 1"
            )
        if not EVERY_RANK <= self.root < self.num_ranks:
            raise ValueError(
                f"AllGather: root is {self.root}; it must be from 0 to {self.num_ranks - 1}, or {EVERY_RANK} for all"
            )
