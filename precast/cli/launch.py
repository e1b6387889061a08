"""precast launch: run a program under mpiexec or srun, with the ranks of its engines as the job's processes."""

from __future__ import annotations

import argparse
import os
import signal
import sys

from precast.cli.errors import CommandError, UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "command",
        nargs=argparse.REMAINDER,
        metavar="COMMAND",
        help="the program with its arguments: mpiexec -n 4 precast launch python app.py",
    )


def run(args: argparse.Namespace) -> int:
    from precast.runtime.mpi import MpiError, NotALauncherError, run_rank

    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise UsageError("launch needs a program to run: mpiexec -n 4 precast launch python app.py")
    try:
        return run_rank(command)
    except NotALauncherError as error:
        raise CommandError(str(error)) from error
    except MpiError as error:
        # A launcher takes any status for an ordinary end as long as MPI has not started, and the other ranks would wait
        # for this one to start it. A process that is killed ends the job.
        print(f"precast: error: {error}", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        raise
