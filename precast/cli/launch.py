"""precast launch: run a program under mpiexec or srun, with the ranks of its engines as the job's processes."""

from __future__ import annotations

import argparse

from precast.cli.errors import CommandError, UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "command",
        nargs=argparse.REMAINDER,
        metavar="COMMAND",
        help="the program with its arguments: mpiexec -n 4 precast launch python app.py",
    )


def run(args: argparse.Namespace) -> int:
    from precast.runtime.mpi import MpiError, run_rank

    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise UsageError("launch needs a program to run: mpiexec -n 4 precast launch python app.py")
    try:
        return run_rank(command)
    except MpiError as error:
        raise CommandError(str(error)) from error
