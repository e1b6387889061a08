"""precast convert: divide a checkpoint into one file for each rank, to build engines of several ranks from."""

from __future__ import annotations

import argparse
from pathlib import Path

from precast.cli.checkpoint_arguments import add_checkpoint_arguments
from precast.cli.output import print_json
from precast.cli.parallel import add_parallel_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint_arguments(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the directory to make")
    add_parallel_arguments(parser, default="1")


def run(args: argparse.Namespace) -> int:
    from precast.building import convert

    partition = convert(
        args.model,
        args.output,
        tensor_parallel_size=args.tensor_parallel_size or 1,
        pipeline_parallel_size=args.pipeline_parallel_size or 1,
        revision=args.revision,
        tokenizer=args.tokenizer,
    )
    mapping = partition.mapping
    if args.json:
        print_json(
            {
                "checkpoint": str(args.output),
                "tensor_parallel_size": mapping.tensor_parallel_size,
                "pipeline_parallel_size": mapping.pipeline_parallel_size,
                "stage_layers": list(partition.stage_layers),
            }
        )
    else:
        ranks = "1 rank" if mapping.world_size == 1 else f"{mapping.world_size} ranks"
        stages = " + ".join(map(str, partition.stage_layers))
        print(f"{args.output}: {ranks}, {mapping.tensor_parallel_size} to a stage, stages of {stages} layers")
    return 0
