"""precast build: turn a Hugging Face checkpoint into an engine directory."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from precast.backend_choice import BACKENDS, DEVICES, GPU_BACKENDS, backend_to_build
from precast.cli.checkpoint_arguments import add_checkpoint_arguments
from precast.cli.errors import CommandError, UsageError
from precast.cli.output import format_bytes, print_json
from precast.cli.parallel import add_parallel_arguments

if TYPE_CHECKING:
    from precast.builder.verify import VerificationReport
    from precast.checkpoints.engine_manifest import EngineManifest

_BUILD_ARGUMENTS = (
    "dtype",
    "kv_cache_dtype",
    "tokens_per_block",
    "max_seq_len",
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "num_processes",
    "revision",
    "tokenizer",
    "backend",
    "target",
    "quantization",
    "group_size",
    "weights",
    "max_batch_size",
    "max_num_tokens",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint_arguments(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the engine directory to make")
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="of the weights; auto: the checkpoint's; for onnxruntime float16 is stored as bfloat16",
    )
    parser.add_argument(
        "--kv-cache-dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="of keys and values; auto: as the weights",
    )
    parser.add_argument("--tokens-per-block", type=int, default=16, metavar="N", help="of the KV cache (default: 16)")
    parser.add_argument("--max-seq-len", type=int, metavar="N", help="prompt and output; default: the model's own")
    add_parallel_arguments(parser, default="what the checkpoint's files were made for, else 1")
    parser.add_argument(
        "--workers",
        dest="num_processes",
        type=int,
        metavar="N",
        help="ranks that are built at a time; default: as many as there are processors",
    )
    _add_backend_arguments(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace an engine that is in DIR, in one step")
    parser.add_argument("--dump-graphs", type=Path, metavar="DIR", help="write the graph after every pass there")
    parser.add_argument(
        "--cache",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="copy the engine from the build cache, where it is built if it is not there (see precast cache)",
    )
    parser.add_argument("--verify", action="store_true", help="compare the engine's logits with a reference, then")


def _add_backend_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--backend",
        default="onnxruntime",
        choices=BACKENDS,
        help="what runs the engine: ONNX Runtime (default), or TensorRT on NVIDIA GPUs; building needs no GPU",
    )
    parser.add_argument(
        "--device",
        choices=DEVICES,
        help="where ONNX Runtime runs the engine: cpu (default), or cuda, for GPUs that TensorRT-RTX refuses",
    )
    group = parser.add_argument_group("for GPUs")
    group.add_argument(
        "--target",
        type=_parse_targets,
        metavar="GPUS",
        help="compute capabilities, such as sm89,sm120, or portable (default): one engine for all that are supported",
    )
    group.add_argument(
        "--quant",
        dest="quantization",
        choices=("int8", "int4", "fp8", "nvfp4"),
        help="format of the layers' matrices, rounded to nearest; default: none; for tensorrt",
    )
    group.add_argument("--group-size", type=int, metavar="N", help="columns that share a scale, of int4; for tensorrt")
    group.add_argument(
        "--weights",
        default="inside",
        choices=("inside", "separate"),
        help="in TensorRT's plan (default), or beside it, so that precast refit can exchange them",
    )
    group.add_argument("--max-batch-size", type=int, metavar="N", help="most sequences of a step (default: 256)")
    group.add_argument("--max-num-tokens", type=int, metavar="N", help="most tokens of a step (default: 8192)")


def _parse_targets(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def run(args: argparse.Namespace) -> int:
    _choose_backend(args)
    if args.verify and args.backend in GPU_BACKENDS:
        raise UsageError(
            "--verify runs the engine, which may need another machine: use precast verify --reference there"
        )
    if args.cache and args.dump_graphs is not None:
        raise UsageError("--dump-graphs shows how an engine is built, and --cache may find it built: leave one out")
    start = time.perf_counter()
    manifest, cache_use = _build(args)
    build_s = time.perf_counter() - start
    report = _verify(args, build_s) if args.verify else None
    _print_result(args, manifest, build_s, cache_use, report)
    if report is not None and not report.passed:
        raise CommandError(f"{args.output}: {summary_of(report)}")
    return 0


def _choose_backend(args: argparse.Namespace) -> None:
    try:
        args.backend = backend_to_build(args.backend, args.device)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _build(args: argparse.Namespace) -> tuple[EngineManifest, str | None]:
    """The manifest, and "hit" or "miss" where the build cache was used."""
    from precast.build_cache import BuildCacheConfig
    from precast.building import build, build_through_cache

    options = {name: getattr(args, name) for name in _BUILD_ARGUMENTS}
    if not args.cache:
        return build(args.model, args.output, dump_graphs=args.dump_graphs, overwrite=args.overwrite, **options), None
    manifest, is_hit = build_through_cache(
        args.model, args.output, BuildCacheConfig(), overwrite=args.overwrite, **options
    )
    return manifest, "hit" if is_hit else "miss"


def summary_of(report: VerificationReport) -> str:
    """The verdict and its figures."""
    verdict = "agree with" if report.passed else "differ from"
    return (
        f"logits {verdict} {report.reference}: error {report.error:.3g} of {report.tolerance:.3g} "
        f"({report.tolerance_reason}), same greedy token at {100 * report.greedy_agreement:.1f}% of the positions"
    )


def _verify(args: argparse.Namespace, build_s: float) -> VerificationReport:
    from precast.verifying import verify_engine

    return verify_engine(args.output, args.model, revision=args.revision, seconds={"build": build_s})


def _print_result(
    args: argparse.Namespace,
    manifest: EngineManifest,
    build_s: float,
    cache_use: str | None,
    report: VerificationReport | None,
) -> None:
    size_bytes = sum(entry.size for entry in manifest.files.values())
    if args.json:
        result: dict[str, Any] = {
            "engine": str(args.output),
            "architecture": manifest.model.architecture,
            "backend": manifest.backend,
            "dtype": manifest.build.dtype,
            "kv_cache_dtype": manifest.build.kv_cache_dtype,
            "max_seq_len": manifest.model.max_seq_len,
            "tensor_parallel_size": manifest.mapping.tensor_parallel_size,
            "pipeline_parallel_size": manifest.mapping.pipeline_parallel_size,
            "notes": list(manifest.build.notes),
            "size_bytes": size_bytes,
            "build_s": build_s,
            "cache": cache_use,
            "verification": None if report is None else report.to_dict(),
        }
        print_json(result)
        return
    ranks = f"{manifest.mapping.world_size} ranks, " if manifest.mapping.world_size > 1 else ""
    how = "copied from the build cache" if cache_use == "hit" else "built"
    print(
        f"{args.output}: {manifest.model.architecture}, weights {manifest.build.dtype}, "
        f"KV cache {manifest.build.kv_cache_dtype}, {ranks}{format_bytes(size_bytes)}, {how} in {build_s:.1f} s"
    )
    for note in manifest.build.notes:
        print(f"  {note}")
    if report is not None and report.passed:
        print(f"  {summary_of(report)}")
