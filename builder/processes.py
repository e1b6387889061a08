"""What processes that build have in common, on both sides of their pipes.

A process gets a job on standard input and answers on standard output, a JSON object a line. It ends with its parent.
"""

import ctypes
import json
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from precast.builder.errors import BuildError

_PROGRAM = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from {module} import main; sys.exit(main())"
_LAST_LINES = 5
_PR_SET_PDEATHSIG = 1


def python_command(module: str) -> list[str]:
    """The command of a Python process that finds the modules which this one finds, and ends as `module`.main says.

    Raises:
        BuildError: it is not known where Python is.
    """
    if not sys.executable:
        raise BuildError("engines are built by Python processes, and sys.executable does not say where Python is")
    path = json.dumps([entry or str(Path.cwd()) for entry in sys.path])
    return [sys.executable, "-c", _PROGRAM.format(module=module), path]


def describe_end(status: int, errors: Iterable[str]) -> str:
    """How a process ended that said nothing of it: its exit status or signal, and the last lines of its errors."""
    lines = [line.strip() for line in errors if line.strip()]
    return _describe_status(status) + (f": {' | '.join(lines[-_LAST_LINES:])}" if lines else "")


def _describe_status(status: int) -> str:
    if status >= 0:
        return f"ended with exit status {status}"
    name = signal.Signals(-status).name
    hint = ", as the system does when memory runs out" if -status == signal.SIGKILL else ""
    return f"was killed by {name}{hint}"


def start_process(parent_pid: int) -> TextIO:
    """In the process: leave Ctrl-C to the parent, end with it, and take standard output for the answers alone.

    What a library prints goes to standard error.
    """
    end_with(parent_pid)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def end_with(parent_pid: int) -> None:
    """Leave Ctrl-C to the parent, which then ends this process, and be killed when it ends, whatever ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:  # it ended before that
        os.kill(os.getpid(), signal.SIGKILL)


def say(answers: TextIO, message: dict[str, object]) -> None:
    print(json.dumps(message), file=answers, flush=True)
