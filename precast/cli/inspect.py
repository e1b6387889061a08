"""precast inspect: show what an engine directory holds; loads nothing of it."""

from __future__ import annotations

import argparse
import dataclasses
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from precast.cli.memory_size import parse_memory_size
from precast.cli.output import format_bytes, print_json, print_table

if TYPE_CHECKING:
    from precast.checkpoints.engine_manifest import EngineManifest, OnnxRuntimeCudaRequirements, TensorRtRequirements
    from precast.checkpoints.weights_index import WeightsIndex
    from precast.cli.memory_tables import MemoryReport


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", type=Path, metavar="ENGINE", help="an engine directory")
    parser.add_argument("--tensors", action="store_true", help="list every tensor")
    parser.add_argument(
        "--memory",
        action="append",
        default=[],
        type=parse_memory_size,
        metavar="SIZE",
        help="of a device that the engine may go on, such as 24GiB; may be given several times; default: usual sizes",
    )


def run(args: argparse.Namespace) -> int:
    from precast.checkpoints.engine_dir import check_files, read_manifest
    from precast.checkpoints.weights_reader import read_weights_index

    manifest = read_manifest(args.engine)
    check_files(args.engine, manifest)
    paths = [rank.weights for rank in manifest.ranks if rank.weights is not None]
    indices = {path: read_weights_index(args.engine / path) for path in paths}
    memory = _report_memory(manifest, indices, args.memory)
    if args.json:
        print_json(_to_json(args.engine, manifest, indices) | memory.to_json())
    else:
        _print(args.engine, manifest, indices, memory, args.tensors)
    return 0


def _report_memory(manifest: EngineManifest, indices: dict[str, WeightsIndex], asked: list[int]) -> MemoryReport:
    from precast.cli.engine_memory import KvBlockCounts, rank_memories
    from precast.cli.host_memory import available_memory_bytes
    from precast.cli.memory_tables import report_memory

    ranks, blocks = rank_memories(manifest, indices), KvBlockCounts.of(manifest)
    # Of an engine for GPUs this host's own memory says nothing.
    available = available_memory_bytes() if manifest.backend == "onnxruntime" else None
    return report_memory(ranks, blocks, asked, available)


def _to_json(engine: Path, manifest: EngineManifest, indices: dict[str, WeightsIndex]) -> dict[str, Any]:
    return {
        "engine": str(engine),
        "size_bytes": sum(entry.size for entry in manifest.files.values()),
        "manifest": manifest.to_document(),
        "missing": _missing(manifest),
        "tensors": {
            path: [
                {**dataclasses.asdict(tensor.spec), "offset": tensor.offset, "size_bytes": tensor.spec.size_bytes}
                for tensor in index.tensors
            ]
            for path, index in indices.items()
        },
    }


def _missing(manifest: EngineManifest) -> list[str]:
    """What the engine needs and this version does not have."""
    from precast.plugins import CUDA_OPS, DEVICE_LAYOUTS, SUPPORTED_LAYOUTS, SUPPORTED_OPS, TENSORRT_OPS

    known = {
        "onnxruntime": (*SUPPORTED_OPS, *SUPPORTED_LAYOUTS),
        "onnxruntime-cuda": (*CUDA_OPS, *DEVICE_LAYOUTS),
        "tensorrt": (*TENSORRT_OPS, *DEVICE_LAYOUTS),
    }
    return sorted(set(manifest.requires) - set(known[manifest.backend]))


def _backend_rows(manifest: EngineManifest) -> list[tuple[str, str]]:
    """What runs the engine."""
    from precast.checkpoints.engine_manifest import OnnxRuntimeRequirements, TensorRtRequirements

    needs = manifest.backend_requirements
    if not isinstance(needs, TensorRtRequirements):
        text = f"{manifest.backend} from {needs.onnxruntime_min}, ONNX IR {needs.ir_version}, opset {needs.opset}"
        rows = [("backend", text)]
        return rows if isinstance(needs, OnnxRuntimeRequirements) else [*rows, *_gpu_rows(needs)]
    weights = "inside the plan" if manifest.ranks[0].weights is None else "beside the plan"
    return [
        ("backend", f"{manifest.backend}: {needs.library} {needs.library_version}"),
        ("quantization", f"{needs.quantization or 'none'}; weights {weights}"),
        *_gpu_rows(needs),
    ]


def _gpu_rows(needs: OnnxRuntimeCudaRequirements | TensorRtRequirements) -> list[tuple[str, str]]:
    capability = f"{needs.min_capability // 10}.{needs.min_capability % 10}"
    return [
        ("GPU", f"built for {', '.join(needs.targets)}; compute capability from {capability}"),
        ("step", f"at most {needs.max_batch_size} sequences and {needs.max_num_tokens} tokens"),
    ]


def _print(
    engine: Path,
    manifest: EngineManifest,
    indices: dict[str, WeightsIndex],
    memory: MemoryReport,
    list_tensors: bool,
) -> None:
    from precast.checkpoints.engine_manifest import ENGINE_FORMAT

    model, build = manifest.model, manifest.build
    missing = _missing(manifest)
    rows: list[tuple[str, str]] = [
        ("engine", f"{engine} (format {ENGINE_FORMAT}, built by precast {manifest.precast_version})"),
        ("model", f"{model.architecture}, {model.num_layers} layers, hidden size {model.hidden_size}"),
        ("vocabulary", f"{model.vocab_size}; begins with {model.bos_token_id}, ends with {_list(model.eos_token_ids)}"),
        ("max_seq_len", f"{model.max_seq_len}"),
        ("weights", build.dtype),
        ("KV cache", f"{build.kv_cache_dtype}, {_kv_cache_sizes(manifest)}"),
        *_backend_rows(manifest),
        ("ranks", f"{manifest.mapping.world_size}"),
        ("promises", f"batch-invariant {_yes(manifest.batch_invariant)}, reproducible {_yes(manifest.reproducible)}"),
    ]
    rows += [("note", note) for note in build.notes]
    required = [name + " (this version lacks it)" * (name in missing) for name in manifest.requires]
    rows += [("requires" if i == 0 else "", name) for i, name in enumerate(required)]
    print_table(rows)
    memory.print()
    for path, index in indices.items():
        _print_tensors(path, index, list_tensors)
    print("\nfiles")
    files = [(path, entry.size, entry.sha256[:16]) for path, entry in sorted(manifest.files.items())]
    print_table([("path", "bytes", "SHA-256 begins with"), *files], indent="  ")


def _print_tensors(path: str, index: WeightsIndex, list_tensors: bool) -> None:
    sizes: dict[tuple[str, str], list[int]] = defaultdict(list)
    for tensor in index.tensors:
        sizes[tensor.spec.layout, tensor.spec.dtype].append(tensor.spec.size_bytes)
    print(f"\n{path}: {len(index.tensors)} tensors")
    groups = [(layout, dtype, len(each), sum(each), format_bytes(sum(each))) for (layout, dtype), each in sizes.items()]
    print_table([("layout", "dtype", "tensors", "bytes", ""), *sorted(groups)], indent="  ")
    if list_tensors:
        specs = [tensor.spec for tensor in index.tensors]
        listed = [
            (spec.name, spec.layout, spec.dtype, "x".join(map(str, spec.shape)), spec.size_bytes) for spec in specs
        ]
        print_table([("name", "layout", "dtype", "shape", "bytes"), *listed], indent="  ")


def _kv_cache_sizes(manifest: EngineManifest) -> str:
    from precast.checkpoints.engine_kv import kv_page_bytes

    tokens = manifest.build.tokens_per_block
    block_bytes = sum(kv_page_bytes(rank.kv_caches) * len(rank.kv_groups) for rank in manifest.ranks)
    windows = sorted({group.window for rank in manifest.ranks for group in rank.kv_groups if group.window is not None})
    text = f"blocks of {tokens} tokens, {format_bytes(block_bytes // tokens)} a token"
    return text + (f", in windows of {_list(tuple(windows))} tokens" if windows else "")


def _list(values: tuple[int, ...]) -> str:
    return " or ".join(map(str, values)) or "none"


def _yes(value: bool) -> str:
    return "yes" if value else "no"
