"""What the parts of ``LLM`` share."""

from __future__ import annotations

from precast.runtime import Engine


class LoadedEngine:
    """An engine, until it is shut down."""

    _engine: Engine | None

    def _running_engine(self) -> Engine:
        if self._engine is None:
            raise RuntimeError("LLM is shutting down")
        return self._engine
