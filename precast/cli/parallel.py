"""How commands are told over how many ranks a model is spread."""

from __future__ import annotations

import argparse


def add_parallel_arguments(parser: argparse.ArgumentParser, *, default: str) -> None:
    """--tp and --pp, None where they are not given; `default` says what that means."""
    parser.add_argument(
        "--tp",
        "--tensor-parallel-size",
        dest="tensor_parallel_size",
        type=int,
        metavar="N",
        help=f"ranks that share every layer; default: {default}",
    )
    parser.add_argument(
        "--pp",
        "--pipeline-parallel-size",
        dest="pipeline_parallel_size",
        type=int,
        metavar="N",
        help=f"stages that the layers are divided into; default: {default}",
    )
