"""How a build reports its progress; the front door draws the bar."""

from typing import Protocol


class ProgressCallback(Protocol):
    """Called from the building thread, first with `done_bytes` 0 and last with `done_bytes == total_bytes`."""

    def __call__(self, stage: str, done_bytes: int, total_bytes: int, /) -> None: ...


def ignore_progress(stage: str, done_bytes: int, total_bytes: int, /) -> None:
    """The callback of a build that nobody watches."""
    del stage, done_bytes, total_bytes
