"""Compiles kernels in a process of its own: Triton and its compilers stay out of the process that builds.

    in    {"parent_pid", "targets": [...], "sets": [[KernelSpec, ...], ...]}
    out   {"kernels": [base64, ...]}, a set's kernels as device/launcher.py opens them; or {"error": text}

A script that builds needs no `if __name__ == "__main__"`: the processes that compile beside each other are this one's.
"""

import base64
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from precast.builder.backends.compile_kernels import compile_beside_each_other
from precast.builder.errors import BuildError
from precast.builder.processes import describe_end, python_command, say, start_process
from precast.plugins.device.kernel_spec import KernelSpec, Parameter
from precast.plugins.device.launcher import compress_kernels

KernelSetSpecs = tuple[KernelSpec, ...]


def compile_sets(sets: Sequence[KernelSetSpecs], targets: Sequence[str]) -> list[bytes]:
    """The kernels of each set for all targets, as bytes.

    Raises:
        BuildError: one cannot be compiled, or the process ended.
    """
    if not sets:
        return []
    job = {
        "parent_pid": os.getpid(),
        "targets": list(targets),
        "sets": [[asdict(spec) for spec in one] for one in sets],
    }
    command = python_command("precast.builder.backends.kernel_process")
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        done = subprocess.run(
            command, input=json.dumps(job), stdout=subprocess.PIPE, stderr=errors, encoding="utf-8", check=False
        )
        answer: dict[str, Any] = json.loads(done.stdout) if done.stdout.endswith("\n") else {}
        if "error" in answer:
            raise BuildError(f"kernels cannot be compiled: {answer['error']}")
        if done.returncode or "kernels" not in answer:
            errors.seek(0)
            raise BuildError(f"the process that compiles kernels {describe_end(done.returncode, errors)}")
    return [base64.b64decode(kernels) for kernels in answer["kernels"]]


def main() -> int:
    """Compile what standard input asks for. Returns the exit status, 1 where an error was said."""
    job = json.loads(sys.stdin.read())
    with start_process(job["parent_pid"]) as answers:
        sets = [tuple(_read_spec(spec) for spec in specs) for specs in job["sets"]]
        try:
            # All at once: sets are small, and there are more processors than kernels in one.
            compiled = compile_beside_each_other([spec for specs in sets for spec in specs], job["targets"])
        except ValueError as error:
            say(answers, {"error": str(error)})
            return 1
        per_spec = len(compiled) // max(1, sum(map(len, sets)))
        kernels = []
        for specs in sets:
            mine, compiled = compiled[: per_spec * len(specs)], compiled[per_spec * len(specs) :]
            kernels.append(base64.b64encode(compress_kernels(mine)).decode("ascii"))
        say(answers, {"kernels": kernels})
    return 0


def _read_spec(fields: dict[str, Any]) -> KernelSpec:
    parameters = tuple(Parameter(**parameter) for parameter in fields["parameters"])
    constants = tuple((name, value) for name, value in fields["constants"])
    return KernelSpec(**{**fields, "parameters": parameters, "constants": constants})
