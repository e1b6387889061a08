"""Starts the process that builds a plan, and says what became of it."""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from precast.builder.backends.tensorrt.library import shared_library
from precast.builder.backends.tensorrt.plan_job import PlanJob
from precast.builder.errors import BuildError
from precast.builder.processes import describe_end, python_command
from precast.builder.progress import ProgressCallback


def build_plan(job: PlanJob, weights_bytes: int, progress: ProgressCallback) -> int:
    """Build the plan of a job; returns its size in bytes.

    Args:
        weights_bytes: Of the network's weights: what the progress says that each stage has to do.
        progress: Told each stage when it begins and when it ends; TensorRT does not say how far it is.

    Raises:
        BuildError: TensorRT refused the network, or its process ended.
        OSError: the plan cannot be written; it has the file's name.
    """
    command = python_command("precast.builder.backends.tensorrt.plan_process")
    last: dict[str, Any] = {}
    with _environment() as environment, tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
            env=environment,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            try:
                with process.stdin as stdin:
                    stdin.write(job.to_json())
            except BrokenPipeError:
                pass  # it ended at once: its status says how
            stage = None
            for line in process.stdout:
                last = json.loads(line)
                if stage is not None and ("stage" in last or "built" in last):
                    progress(stage, weights_bytes, weights_bytes)
                if (stage := last.get("stage")) is not None:
                    progress(stage, 0, weights_bytes)
            status = process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            process.stdout.close()
        if "built" in last and status == 0:
            return int(last["built"]["plan_bytes"])
        if "error" in last:
            raise BuildError(last["error"])
        if "os_error" in last:
            raise OSError(*last["os_error"])
        errors.seek(0)
        raise BuildError(f"the process that builds the plan {describe_end(status, errors)}")


@contextmanager
def _environment() -> Iterator[dict[str, str]]:
    """The environment of the process.

    TensorRT-RTX's parser opens `libtensorrt_rtx.so` where it meets a plugin, and ends the process where there is none;
    the wheel calls the file `libtensorrt_rtx.so.1`. A link to the same file is the library that is loaded already.
    Temporary files go where the link is, so that nothing stays of a process that is killed.
    """
    environment = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="precast-") as directory:
        environment["TMPDIR"] = directory
        library = shared_library()
        if library is not None:
            Path(directory, "libtensorrt_rtx.so").symlink_to(library.resolve())
            others = environment.get("LD_LIBRARY_PATH")
            environment["LD_LIBRARY_PATH"] = f"{directory}:{others}" if others else directory
        yield environment
