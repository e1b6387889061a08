"""The command line: ``precast build | refit | convert | warm | run | inspect | verify | cache | launch | build-mpi``, a
module each.

Results go to stdout, everything else to stderr. Exit status 0: done; 1: an error, said in one line; 2: wrong usage;
130: interrupted (Ctrl-C); 141: nobody reads stdout any more.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from precast.cli import build, build_mpi, cache, convert, inspect, launch, refit, run, verify, warm
from precast.cli.errors import CommandError, describe
from precast.version import __version__

_COMMANDS = {
    "build": build,
    "refit": refit,
    "convert": convert,
    "warm": warm,
    "run": run,
    "inspect": inspect,
    "verify": verify,
    "cache": cache,
    "launch": launch,
    "build-mpi": build_mpi,
}
_KILLED = 128  # what a shell adds to the number of the signal that ended a process


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"precast: error: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line, by default that of the process. Returns the exit status."""
    args = _make_parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a character is no reason to stop
            stream.reconfigure(errors="replace")
    logging.basicConfig(format="%(name)s: %(message)s", level=logging.WARNING)
    try:
        status: int = args.run(args)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return _KILLED + signal.SIGINT
    except BrokenPipeError:
        # What is still buffered would fail once more when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _KILLED + signal.SIGPIPE
    except Exception as error:
        if args.debug:
            raise
        print(f"precast: error: {describe(error)}", file=sys.stderr)
        return error.status if isinstance(error, CommandError) else 1


def _make_parser() -> _Parser:
    common = _Parser(add_help=False, allow_abbrev=False)
    common.add_argument("--json", action="store_true", help="print the result as JSON, for programs")
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser = _Parser(
        prog="precast", description="Build language model engines ahead of time, and run them.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"precast {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, module in _COMMANDS.items():
        summary = (module.__doc__ or "").partition("\n")[0].partition(": ")[2].rstrip(".")
        command = commands.add_parser(name, help=summary, description=summary, parents=[common], allow_abbrev=False)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser
