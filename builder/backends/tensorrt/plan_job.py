"""What the process that builds a plan is told and answers, as JSON (processes.py says how).

{"stage": name}                     what it does now
{"built": {"plan_bytes"}}           the plan is written
{"error": text}                     TensorRT refused something
{"os_error": [errno, text, file]}   a file cannot be read or written
"""

import json
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class InputRange:
    """The shapes of one input in one profile: least, most common, greatest."""

    name: str
    least: tuple[int, ...]
    common: tuple[int, ...]
    greatest: tuple[int, ...]


@dataclass(frozen=True)
class PlanJob:
    """Everything that a plan follows from.

    Attributes:
        graph: The lowered graph, an ONNX file.
        weights: Its initialisers, a weights file; "" where weights are inputs.
        plan: The file to write, which does not exist yet.
        library: The import name of TensorRT.
        targets: As in the build plan.
        kernel_capabilities: What the kernels of plugins are compiled for, and as PTX for others. Empty: they have none.
        profiles: The shapes of all dynamic inputs, for each profile.
        parent_pid: Of the process that wants it: this one ends with that.
    """

    graph: str
    weights: str
    plan: str
    library: str
    targets: tuple[str, ...]
    kernel_capabilities: tuple[int, ...]
    profiles: tuple[tuple[InputRange, ...], ...]
    parent_pid: int

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "PlanJob":
        fields: dict[str, Any] = json.loads(text)
        fields["targets"] = tuple(fields["targets"])
        fields["kernel_capabilities"] = tuple(fields["kernel_capabilities"])
        fields["profiles"] = tuple(tuple(_input_range(entry) for entry in profile) for profile in fields["profiles"])
        return cls(**fields)


def _input_range(entry: dict[str, Any]) -> InputRange:
    return InputRange(entry["name"], tuple(entry["least"]), tuple(entry["common"]), tuple(entry["greatest"]))
