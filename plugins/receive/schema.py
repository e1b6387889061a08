"""Receive, version 1: the rows that the stage before has sent.

    y[t,i] = x[t,i]                                            x: the input of the Send that this one answers

T = tokens (rows), F = features.

Inputs
    token_ids     int32 [T]          only its length is read: how many rows this step has
Outputs
    y             float32 [T, F]
Attributes
    num_features  int                F, at least 1

Rows come from the rank of the stage before that has the same tensor rank; its n-th Send is answered by the n-th
Receive. Rows of another number or size than [T, F] are an error, for then the stages compute different steps. How
waiting fails is as for AllReduce.
"""

from dataclasses import dataclass

from precast.plugins import domain

DOMAIN = domain.DOMAIN
NAME = "Receive"
VERSION = 1


@dataclass(frozen=True)
class ReceiveAttributes:
    """The op's attributes. Raises ValueError where they make no sense."""

    num_features: int

    def __post_init__(self) -> None:
        if self.num_features < 1:
            raise ValueError(f"Receive: num_features is {self.num_features}; it must be at least 1")
