"""A part of a tensor: what one rank has of it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorSlice:
    """A range of indices along one axis, everything along the others.

    Attributes:
        shape: Of the slice.
        axis: The axis that is divided.
        start: Its first index. Indices at or beyond the tensor's own extent read as zeros: a padded vocabulary.
        is_zero: All of it is zeros, because one other rank has the whole: a bias that must be added only once.
    """

    shape: tuple[int, ...]
    axis: int = 0
    start: int = 0
    is_zero: bool = False

    @property
    def stop(self) -> int:
        return self.start + self.shape[self.axis]
