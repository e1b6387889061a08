"""precast verify: compare an engine's files with their hashes, and its logits with a reference."""

from __future__ import annotations

import argparse
from pathlib import Path

from precast.cli.build import summary_of
from precast.cli.errors import CommandError, UsageError
from precast.cli.output import format_bytes, print_json, print_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "engine", type=Path, metavar="ENGINE", help="an engine directory; with --backend a checkpoint, or its hub id"
    )
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
    layers = parser.add_argument_group("comparing layers on this machine's GPU")
    layers.add_argument(
        "--backend",
        choices=("tensorrt",),
        help="build the checkpoint ENGINE for it and for ONNX Runtime, and compare what every layer gives",
    )
    layers.add_argument("--dtype", default="auto", choices=("auto", "bfloat16", "float16"), help="of both engines")
    layers.add_argument("--tolerance", type=float, metavar="X", help="of each output: max|a - b| / max|b|")
    layers.add_argument("--save", type=Path, metavar="DIR", help="write all outputs there, for polygraphy")


def run(args: argparse.Namespace) -> int:
    from precast.checkpoints.engine_dir import read_manifest, verify_files
    from precast.progress import BytesBar

    if args.backend is not None:
        return _compare_layers(args)
    if args.dtype != "auto" or args.tolerance is not None or args.save is not None:
        raise UsageError("--dtype, --tolerance and --save need --backend")
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


def _compare_layers(args: argparse.Namespace) -> int:
    from precast.comparing_layers import compare_layers
    from precast.verifying import DEFAULT_PROMPTS

    if args.reference is not None or args.reference_backend != "numpy":
        raise UsageError("--backend compares with ONNX Runtime: leave out --reference and --reference-backend")
    if args.tolerance is not None and not args.tolerance > 0:
        raise UsageError(f"--tolerance must be more than 0, got {args.tolerance}")
    report = compare_layers(
        args.engine,
        args.backend,
        revision=args.revision,
        prompts=args.prompts or DEFAULT_PROMPTS,
        dtype=args.dtype,
        tolerance=args.tolerance,
        save_to=args.save,
    )
    if args.json:
        print_json(report.to_dict())
    else:
        header = ("prompt", "output", "error", "mean difference", "")
        rows = [
            (f"{each.prompt}", each.output, f"{each.error:.3g}", f"{each.mean_difference:.3g}", _verdict(each.passed))
            for each in report.results
        ]
        print_table([header, *rows])
    wrong = report.first_wrong
    if wrong is not None:
        raise CommandError(
            f"{args.engine}: {report.backend} differs from {report.reference} first in {wrong.output} of prompt "
            f"{wrong.prompt}: error {wrong.error:.3g} of {report.tolerance:.3g}"
        )
    return 0


def _verdict(passed: bool) -> str:
    return "" if passed else "differs"
