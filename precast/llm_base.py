"""What the parts of ``LLM`` share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from precast.runtime import Engine, ShutDownError

SHUTTING_DOWN = "LLM is shutting down"


@contextlib.contextmanager
def saying_so_after_shutdown() -> Iterator[None]:
    """Another thread may shut the engine down at any time: says the same as when it came earlier."""
    try:
        yield
    except ShutDownError:
        raise RuntimeError(SHUTTING_DOWN) from None


class LoadedEngine:
    """An engine, until it is shut down."""

    _engine: Engine | None

    def _running_engine(self) -> Engine:
        if self._engine is None:
            raise RuntimeError(SHUTTING_DOWN)
        return self._engine
