"""Fake plans: bytes in place of a plan, from which the fake engine knows what the real one would.

    MAGIC | size of the header, 8 bytes little-endian | header, JSON | the lowered network, ONNX

The network has its weights inside, or as inputs where they are separate.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

MAGIC = b"precast: a fake plan\n"


class PlanError(Exception):
    """These bytes are no fake plan."""


@dataclass(frozen=True)
class Range:
    """The shapes of one input in one profile."""

    name: str
    least: tuple[int, ...]
    common: tuple[int, ...]
    greatest: tuple[int, ...]

    def holds(self, shape: tuple[int, ...]) -> bool:
        if len(shape) != len(self.least):
            return False
        return all(least <= size <= most for least, size, most in zip(self.least, shape, self.greatest, strict=True))


@dataclass(frozen=True)
class FakePlan:
    """What a plan consists of.

    Attributes:
        targets: As in the build plan: "portable", or "sm89" and others.
        profiles: Of every dynamic input; the others have the shape that the network says.
        scratch_bytes: Device memory that a step needs, for each profile.
    """

    library_version: str
    targets: tuple[str, ...]
    profiles: tuple[tuple[Range, ...], ...]
    scratch_bytes: tuple[int, ...]
    model: bytes

    def to_bytes(self) -> bytes:
        fields = asdict(self)
        del fields["model"]
        header = json.dumps(fields).encode("ascii")
        return MAGIC + len(header).to_bytes(8, "little") + header + self.model

    @classmethod
    def from_bytes(cls, data: bytes) -> "FakePlan":
        """Raises PlanError."""
        if not data.startswith(MAGIC):
            raise PlanError("Serialization assertion failed: the magic number is not that of a fake plan")
        start = len(MAGIC) + 8
        end = start + int.from_bytes(data[len(MAGIC) : start], "little")
        try:
            fields: dict[str, Any] = json.loads(data[start:end])
            profiles = tuple(tuple(_range(entry) for entry in profile) for profile in fields.pop("profiles"))
            targets, scratch_bytes = tuple(fields.pop("targets")), tuple(fields.pop("scratch_bytes"))
            return cls(targets=targets, profiles=profiles, scratch_bytes=scratch_bytes, model=data[end:], **fields)
        except (ValueError, KeyError, TypeError) as error:
            raise PlanError(f"Serialization assertion failed: {error}") from error


def _range(entry: dict[str, Any]) -> Range:
    return Range(entry["name"], tuple(entry["least"]), tuple(entry["common"]), tuple(entry["greatest"]))
