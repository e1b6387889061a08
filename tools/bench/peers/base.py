"""What every adapter gives, so that the runner need not know one engine from another."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from workloads import Workload


@dataclass(frozen=True)
class Precision:
    """Bits, groups and scales of everything that is stored or multiplied, in words."""

    body: str
    lm_head: str
    embedding: str
    kv_cache: str
    activations: str


@dataclass(frozen=True)
class About:
    """What ran, so that a figure can be judged.

    Attributes:
        how: which interface was used, and how requests were batched.
    """

    versions: dict[str, str]
    precision: Precision
    how: str


@dataclass
class RequestRun:
    """What became of a request. Times are nanoseconds of CLOCK_MONOTONIC, which all processes share."""

    token_ids: list[int] = field(default_factory=list)
    first_token_ns: int = 0
    last_token_ns: int = 0

    def add(self, token_id: int) -> None:
        """A token that is there now."""
        self.last_token_ns = time.monotonic_ns()
        if not self.token_ids:
            self.first_token_ns = self.last_token_ns
        self.token_ids.append(token_id)


class Adapter(Protocol):
    """An engine: made with the options of its variant, loaded once, then given work."""

    def prepare(self, checkpoint: Path, files: Path) -> None:
        """Writes what the engine loads into the empty folder `files`, once per machine. Takes what time it takes."""

    def load(self, files: Path, workload: Workload, num_threads: int) -> None:
        """Loads from `files`; `workload` says how many requests and how many tokens there must be room for."""

    def run(self, workload: Workload) -> list[RequestRun]:
        """Runs the requests, all of them submitted at once; the results in their order."""

    def about(self) -> About:
        """After a run, for engines that decide something only then."""
