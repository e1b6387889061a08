"""precast warm: compile an engine for TensorRT on this machine's GPU once, and keep what was compiled in the engine."""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from precast.cli.errors import CommandError
from precast.cli.output import print_json
from precast.runtime import Engine, EngineOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", type=Path, metavar="ENGINE", help="an engine for tensorrt")
    parser.add_argument("--max-batch-size", type=int, metavar="N", help="sequences of a step (default: 64)")
    parser.add_argument("--max-num-tokens", type=int, metavar="N", help="tokens of a step (default: 2048)")


def run(args: argparse.Namespace) -> int:
    from precast.checkpoints.engine_dir import check_files, read_manifest

    manifest = read_manifest(args.engine)
    check_files(args.engine, manifest)
    if manifest.backend != "tensorrt":
        raise CommandError(
            f"{args.engine}: built for the backend {manifest.backend}, which has nothing to compile: warm is for "
            "engines of the backend tensorrt"
        )
    options = EngineOptions(max_batch_size=args.max_batch_size, max_num_tokens=args.max_num_tokens)
    with _warming():
        cold_s = _load(args.engine, options)
    warm_s = _load(args.engine, options)
    if args.json:
        print_json({"engine": str(args.engine), "cold_s": cold_s, "warm_s": warm_s})
    else:
        print(f"{args.engine}: loaded and compiled in {cold_s:.1f} s; from now on it loads in {warm_s:.1f} s")
    return 0


@contextlib.contextmanager
def _warming() -> Iterator[None]:
    """The processes of ranks that are started in here run all shapes and keep what was compiled."""
    variable = "PRECAST_TENSORRT_WARM"
    os.environ[variable] = "1"
    try:
        yield
    finally:
        del os.environ[variable]


def _load(engine: Path, options: EngineOptions) -> float:
    """Seconds until the engine could take a request."""
    start = time.monotonic()
    with Engine(engine, options):
        return time.monotonic() - start
