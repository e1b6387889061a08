"""Engines on fake devices in worker processes: the real worker, which finds the fakes in place of cuda-python and
TensorRT-RTX.

    with fake_workers(tmp_path, total_bytes=1 << 20) as workers, Engine(path) as engine:
        ...

Leaving it fails where the device was misused in a worker, or a process is left.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from precast.runtime import Engine, EngineRequest, Event, FinishedEvent, TokenEvent
from tests.processes import children_of, is_running
from tests.runtime.tensorrt.fake_cuda.settings import ENVIRONMENT_VARIABLE
from tests.runtime.tensorrt.fake_engine import PYTHON_PATH

TIMEOUT_S = 60


@dataclass(frozen=True)
class Workers:
    """What they write down, and which they are."""

    misuse_file: Path

    def misuse(self) -> str:
        return self.misuse_file.read_text() if self.misuse_file.exists() else ""

    def running(self) -> list[int]:
        """Processes that this one has started and that have not ended."""
        return [pid for pid in children_of(os.getpid()) if is_running(pid)]


@contextmanager
def fake_workers(folder: Path, **settings: Any) -> Iterator[Workers]:
    """Workers that are started here have fake devices with these settings."""
    workers = Workers(folder / "misuse")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PYTHON_PATH)
        patch.setenv(ENVIRONMENT_VARIABLE, json.dumps({**settings, "misuse_file": str(workers.misuse_file)}))
        before = workers.running()
        yield workers
    wait_until(lambda: workers.running() == before, "a process is left")
    assert workers.misuse() == "", workers.misuse()


def wait_until(is_so: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.01)


@dataclass(frozen=True)
class Answer:
    """What a request gave."""

    events: Sequence[Event]

    @property
    def tokens(self) -> list[int]:
        return [event.token_id for event in self.events if isinstance(event, TokenEvent)]

    @property
    def token_events(self) -> list[TokenEvent]:
        return [event for event in self.events if isinstance(event, TokenEvent)]

    @property
    def end(self) -> FinishedEvent:
        last = self.events[-1]
        assert isinstance(last, FinishedEvent)
        return last


def greedy(prompt: Sequence[int], max_tokens: int = 8, **fields: Any) -> EngineRequest:
    return EngineRequest(prompt, max_tokens=max_tokens, temperature=0, ignore_eos=True, **fields)


def run(engine: Engine, requests: Sequence[EngineRequest]) -> list[Answer]:
    """All at once."""
    return [Answer(_events(handle)) for handle in engine.submit(requests)]


def run_alone(engine: Engine, requests: Sequence[EngineRequest]) -> list[Answer]:
    """One after the other."""
    return [run(engine, [request])[0] for request in requests]


def _events(handle: Any) -> list[Event]:
    events = [handle.get(timeout_s=TIMEOUT_S)]
    while not isinstance(events[-1], FinishedEvent):
        events.append(handle.get(timeout_s=TIMEOUT_S))
    return events
