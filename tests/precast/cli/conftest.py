"""Running `precast` in this process or in one of its own."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from precast.cli import main


@dataclass(frozen=True)
class Result:
    """How a command ended, and what it wrote."""

    status: int
    out: str
    err: str


@pytest.fixture
def precast(capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """`precast("inspect", path)` runs the command in this process."""

    def run(*arguments: object) -> Result:
        capfd.readouterr()  # what making the arguments has written
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as exit_:  # argparse
            status = int(exit_.code or 0)
        return Result(status, *capfd.readouterr())

    return run


@pytest.fixture
def precast_process() -> Callable[..., Result]:
    """The same in a new process; `stdin=` is what it reads."""

    def run(*arguments: object, stdin: str | bytes = b"") -> Result:
        command = [sys.executable, "-m", "precast", *map(str, arguments)]
        given = stdin.encode() if isinstance(stdin, str) else stdin
        done = subprocess.run(command, input=given, capture_output=True, timeout=120, check=False)
        return Result(done.returncode, done.stdout.decode(), done.stderr.decode())

    return run
