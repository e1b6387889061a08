"""What to launch: pure descriptions, which tests run in Triton's interpreter and the runtime with cuLaunchKernel."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Launch:
    """One kernel launch. Its arguments are the buffers in this order, then the scalars, all int32, in theirs.

    The grid follows from shapes, never from data, so a captured graph stays right as long as the shapes do.
    """

    kernel: str
    grid: tuple[int, int, int]
    buffers: tuple[str, ...]
    scalars: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Region:
    """A buffer inside the workspace. `offset` is a multiple of 256."""

    name: str
    offset: int
    size_bytes: int


@dataclass(frozen=True)
class Workspace:
    """Device memory that a step needs besides its inputs and outputs; nothing in it outlives the step."""

    regions: tuple[Region, ...]
    size_bytes: int


def lay_out(sizes_bytes: dict[str, int], alignment: int = 256) -> Workspace:
    """Regions of these sizes one after the other, in this order. Larger sizes never give a smaller workspace."""
    regions: list[Region] = []
    end = 0
    for name, size_bytes in sizes_bytes.items():
        regions.append(Region(name, end, size_bytes))
        end = -(-(end + size_bytes) // alignment) * alignment
    return Workspace(tuple(regions), end)
