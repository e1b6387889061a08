"""The part of ``LLM`` that says what the engine is doing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from precast import stats
from precast.llm_base import LoadedEngine, saying_so_after_shutdown


class StatsMethods(LoadedEngine):
    """Counters, iterations, and the KV cache."""

    _keeps_stats: bool
    _keeps_kv_events: bool

    @property
    def counters(self) -> dict[str, Any]:
        """Counters of this moment: see ``precast_engine_stats``."""
        with saying_so_after_shutdown():
            return self._running_engine().stats()

    def get_stats(self, timeout: float | None = 2.0) -> list[dict[str, Any]]:
        """Statistics of the iterations since the last call, oldest first, with TensorRT-LLM's keys.

        The last 1000 are kept, or as many as the option ``iter_stats_max_iterations`` says.

        Args:
            timeout: seconds to wait for the next iteration when there was none; None: without end.

        Raises:
            RuntimeError: ``iter_stats_max_iterations`` is 0, or after :meth:`shutdown`.
        """
        return stats.poll(self._take_stats, timeout)

    def get_stats_async(self, timeout: float | None = 2.0) -> AsyncIterator[dict[str, Any]]:
        """As :meth:`get_stats`, one iteration after the other, until none comes for ``timeout`` seconds."""
        return stats.poll_async(self._take_stats, timeout)

    def get_kv_cache_events(self, timeout: float | None = 2.0) -> list[dict[str, Any]]:
        """What has become of cached KV blocks since the last call, oldest first, with TensorRT-LLM's keys.

        Hashes are strings. A gap in the ascending ``event_id`` says that the buffer was too small.

        Args:
            timeout: seconds to wait for an event when there was none; None: without end.

        Raises:
            RuntimeError: ``kv_cache_config.event_buffer_max_size`` is 0, or after :meth:`shutdown`.
        """
        return stats.poll(self._take_kv_events, timeout)

    def get_kv_cache_events_async(self, timeout: float | None = 2.0) -> AsyncIterator[dict[str, Any]]:
        """As :meth:`get_kv_cache_events`, one event after the other, until none comes for ``timeout`` seconds."""
        return stats.poll_async(self._take_kv_events, timeout)

    def reset_prefix_cache(self) -> None:
        """Forgets cached KV blocks; those in use are forgotten when their requests end."""
        with saying_so_after_shutdown():
            self._running_engine().reset_prefix_cache()

    def _take_stats(self) -> list[dict[str, Any]]:
        engine = self._running_engine()
        if not self._keeps_stats:
            raise RuntimeError("no statistics are kept: load with iter_stats_max_iterations above 0")
        with saying_so_after_shutdown():
            iterations = engine.take_iteration_stats()
        return [stats.to_iteration_stats(iteration, engine.info) for iteration in iterations]

    def _take_kv_events(self) -> list[dict[str, Any]]:
        engine = self._running_engine()
        if not self._keeps_kv_events:
            raise RuntimeError(
                "no events are kept: load with kv_cache_config=KvCacheConfig(event_buffer_max_size=...) above 0"
            )
        with saying_so_after_shutdown():
            events = engine.take_kv_events()
        return list(map(stats.to_kv_event, events))
