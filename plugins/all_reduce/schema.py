"""AllReduce, version 1: the sum of what the ranks of a stage have, on every one of them.

    y[t,i] = ((x_0[t,i] + x_1[t,i]) + x_2[t,i]) + ...          x_r: input of tensor rank r; N ranks

T = tokens (rows), F = features.

Inputs
    x          float32 [T, F]     T and F are the same on all ranks; T >= 0
Outputs
    y          float32 [T, F]     the same bits on all ranks
Attributes
    num_ranks  int                N, the tensor parallel size; >= 2

Sums are of fp32 in the order of ranks, whatever the algorithm and however large the message is: an element's bits
depend on the N values at its place and on nothing else, so a row's do not depend on what runs beside it.

On GPUs x and y have the 16-bit dtype of activations, as all values of such a graph: the sum is rounded to it, once
where ranks see each other's memory. Where they do not, and for long messages, NCCL adds up in an order of its own
(tensorrt/plugin.py).

All ranks of the stage run the node the same number of times in the same order. A rank that waits longer than the limit
of its communicator, or that learns that another has ended, fails with an error that names that rank; so does a rank
whose x is of another size than the others'.
"""

from dataclasses import dataclass

from precast.plugins import domain

DOMAIN = domain.DOMAIN
NAME = "AllReduce"
VERSION = 1


@dataclass(frozen=True)
class AllReduceAttributes:
    """The op's attributes. Raises ValueError where they make no sense."""

    num_ranks: int

    def __post_init__(self) -> None:
        if self.num_ranks < 2:
            raise ValueError(f"AllReduce: num_ranks is {self.num_ranks}; it must be at least 2")
