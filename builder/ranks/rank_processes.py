"""Builds ranks in processes beside each other, a fixed number at a time.

Processes, because packing is Python and NumPy in one thread, and because what a rank's build needs goes back to the
system when it is done: memory is bounded by the number of processes times a few of the largest slices.
"""

import json
import queue
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import IO, Any

from precast.builder.errors import BuildError
from precast.builder.packing import STAGE
from precast.builder.processes import describe_end, python_command
from precast.builder.progress import ProgressCallback
from precast.builder.ranks.built_rank import BuiltRank
from precast.builder.ranks.rank_job import RankJob, built_from_json, error_from_json


def build_ranks(
    jobs: Sequence[RankJob], sizes_bytes: Sequence[int], num_processes: int, progress: ProgressCallback
) -> list[BuiltRank]:
    """Build every rank, or none: the first that fails ends the others.

    Args:
        jobs: One a rank, in the order of ranks.
        sizes_bytes: About how large each rank's weights are, for the progress.
        num_processes: That run at a time, at least 1.
        progress: Called from this thread with the bytes of all ranks together.

    Raises:
        BuildError, CheckpointError: a rank cannot be built, or its process ended; the message has its number.
        OSError: a file cannot be written.
    """
    built: dict[int, BuiltRank] = {}
    meter = _Meter(sizes_bytes, progress)
    meter.report()
    events: queue.Queue[tuple[_Process, dict[str, Any] | None]] = queue.Queue()
    waiting = list(reversed(jobs))
    with ExitStack() as running:
        for _ in range(min(num_processes, len(jobs))):
            running.enter_context(_Process(waiting.pop(), events))
        while len(built) < len(jobs):
            process, message = events.get()
            if message is None:
                built[process.job.rank] = process.result()
                if waiting:
                    running.enter_context(_Process(waiting.pop(), events))
            elif "progress" in message:
                _, done_bytes, total_bytes = message["progress"]
                meter.advance(process.job.rank, done_bytes, total_bytes)
            else:
                process.last_message = message
    return [built[job.rank] for job in jobs]


class _Process:
    """A process that builds a rank. Its messages, and None at its end, are put on `events`. Leaving it kills it."""

    def __init__(self, job: RankJob, events: "queue.Queue[tuple[_Process, dict[str, Any] | None]]") -> None:
        self.job = job
        self.last_message: dict[str, Any] = {}
        self._events = events

    def __enter__(self) -> "_Process":
        command = python_command("precast.builder.ranks.rank_process")
        self._errors: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            encoding="utf-8",
        )
        self._reader = threading.Thread(target=self._read, name=f"rank{self.job.rank}", daemon=True)
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._reader.join()
        self._errors.close()

    def result(self) -> BuiltRank:
        """What the process built. It has ended.

        Raises:
            BuildError, CheckpointError, OSError: what went wrong.
        """
        status = self._process.wait()
        if "built" in self.last_message and status == 0:
            return built_from_json(self.last_message["built"])
        if "error" in self.last_message:
            raise error_from_json(self.job.rank, self.last_message["error"])
        self._errors.seek(0)
        raise BuildError(f"rank {self.job.rank}: the process that builds it {describe_end(status, self._errors)}")

    def _read(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            with self._process.stdin as stdin:
                stdin.write(self.job.to_json())
        except BrokenPipeError:
            pass  # it ended at once: `result` says how
        with self._process.stdout as stdout:
            for line in stdout:
                self._events.put((self, json.loads(line)))
        self._events.put((self, None))


class _Meter:
    """Adds up what the ranks report, each as its share of what it was expected to be."""

    def __init__(self, sizes_bytes: Sequence[int], progress: ProgressCallback) -> None:
        self._sizes_bytes = sizes_bytes
        self._done_bytes = [0] * len(sizes_bytes)
        self._progress = progress

    def advance(self, rank: int, done_bytes: int, total_bytes: int) -> None:
        self._done_bytes[rank] = self._sizes_bytes[rank] * done_bytes // total_bytes
        self.report()

    def report(self) -> None:
        self._progress(STAGE, sum(self._done_bytes), sum(self._sizes_bytes))
