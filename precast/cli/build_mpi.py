"""precast build-mpi: compile the part of precast that talks to an MPI library, for engines across hosts."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from precast.cli.errors import CommandError
from precast.cli.output import print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mpicc",
        default=os.environ.get("MPICC", "mpicc"),
        metavar="COMPILER",
        help="the compiler wrapper of the MPI that jobs run under; default: $MPICC, else mpicc",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="default: $PRECAST_MPI, else beside libprecast, where `precast launch` looks for it",
    )


def run(args: argparse.Namespace) -> int:
    from precast.runtime.mpi import MpiError, build_mpi_library, mpi_library_path

    output = args.output or mpi_library_path()
    try:
        build_mpi_library(output, args.mpicc)
    except MpiError as error:
        raise CommandError(str(error)) from error
    if args.json:
        print_json({"library": str(output)})
    else:
        print(output)
    return 0
