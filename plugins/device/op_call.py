"""What an op gets that is to run on a device, whoever runs it."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class OpCall:
    """One run of a node.

    Attributes:
        shapes: Of the inputs.
        inputs, outputs: Device addresses.
        workspace_address: Of as many bytes as the op has said that it needs.
        stream: The handle of a CUDA stream.
    """

    shapes: Sequence[Sequence[int]]
    inputs: Sequence[int]
    outputs: Sequence[int]
    workspace_address: int
    stream: int
