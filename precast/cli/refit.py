"""precast refit: give an engine the weights of another checkpoint, keeping its plan."""

from __future__ import annotations

import argparse
from pathlib import Path

from precast.cli.checkpoint_arguments import add_checkpoint_arguments
from precast.cli.output import format_bytes, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "engine", type=Path, metavar="ENGINE", help="for device cuda, or for tensorrt with --weights separate"
    )
    add_checkpoint_arguments(parser)
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="the engine directory to make; ENGINE with --overwrite",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an engine that is in DIR, in one step")


def run(args: argparse.Namespace) -> int:
    from precast.building import refit

    manifest = refit(
        args.engine,
        args.model,
        args.output,
        revision=args.revision,
        tokenizer=args.tokenizer,
        overwrite=args.overwrite,
    )
    weights = manifest.ranks[0].weights
    size_bytes = 0 if weights is None else manifest.files[weights].size
    if args.json:
        print_json({"engine": str(args.output), "weights_bytes": size_bytes})
    else:
        print(f"{args.output}: the plan of {args.engine} with {format_bytes(size_bytes)} of weights from {args.model}")
    return 0
