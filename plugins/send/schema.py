"""Send, version 1: hand rows to the next stage of a pipeline.

T = tokens (rows), F = features.

Inputs
    x     float32 [T, F]     T >= 1
Outputs
    rows  int32 [1]          T; a graph must have an output
Attributes
    none

They go to the rank of the next stage that has the same tensor rank, whose Receive gives them, in the order in which
they were sent. Send returns when x may be changed, which is before they are received, as long as the communicator has
room: so a stage can be some steps ahead of the next. How waiting fails is as for AllReduce.
"""

from dataclasses import dataclass

from precast.plugins import domain

DOMAIN = domain.DOMAIN
NAME = "Send"
VERSION = 1


@dataclass(frozen=True)
class SendAttributes:
    """The op has no attributes."""
