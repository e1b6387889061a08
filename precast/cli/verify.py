"""precast verify: compare an engine's files with their hashes, and its logits with a reference."""

from __future__ import annotations

import argparse
from pathlib import Path

from precast.cli.build import summary_of
from precast.cli.errors import CommandError, UsageError
from precast.cli.output import format_bytes, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", type=Path, metavar="ENGINE", help="an engine directory")
    parser.add_argument(
        "--reference",
        metavar="CHECKPOINT",
        help="what the engine was built from: also compare logits, and write verification.json into the engine",
    )
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit of a hub id")
    parser.add_argument("--prompts", nargs="+", metavar="TEXT", help="to compare the logits of; default: a few")
    parser.add_argument(
        "--reference-backend",
        choices=("numpy", "hf"),
        default="numpy",
        help="what runs the checkpoint: Precast's own ops in NumPy (default), or Hugging Face transformers",
    )


def run(args: argparse.Namespace) -> int:
    from precast.checkpoints.engine_dir import read_manifest, verify_files
    from precast.progress import BytesBar

    if args.reference is None and (args.prompts or args.revision or args.reference_backend != "numpy"):
        raise UsageError("--prompts, --revision and --reference-backend need --reference")
    manifest = read_manifest(args.engine)
    with BytesBar() as bar:
        verify_files(args.engine, manifest, lambda done, total: bar("hashing", done, total))
    size_bytes = sum(entry.size for entry in manifest.files.values())
    if not args.json:
        print(f"{args.engine}: {len(manifest.files)} files, {format_bytes(size_bytes)}: all as they were built")
    report = None
    if args.reference is not None:
        from precast.verifying import verify_engine

        report = verify_engine(
            args.engine,
            args.reference,
            revision=args.revision,
            prompts=args.prompts,
            backend=args.reference_backend,
        )
    if args.json:
        print_json(
            {
                "engine": str(args.engine),
                "num_files": len(manifest.files),
                "size_bytes": size_bytes,
                "logits": None if report is None else report.to_dict(),
            }
        )
    if report is not None and not report.passed:
        raise CommandError(f"{args.engine}: {summary_of(report)}")
    if report is not None and not args.json:
        print(f"{args.engine}: {summary_of(report)}")
    return 0
