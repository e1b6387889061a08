"""Times the device kernels that work on rows, on an NVIDIA GPU, over the time that their bytes must take.

    python tools/bench/gpu_rows.py --hidden 4096 --intermediate 14336 --vocabulary 128256 --rows 1 32 256

All are bound by memory: the floor is the bytes that an op reads and writes, each once, over the bandwidth of a copy on
this GPU. A figure below 1 says that the data lay in the cache, as it does in a network too; of a few rows the time is a
launch's, about 2 microseconds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpu import measure_bandwidth
from gpu_timing import Gpu
from precast.plugins.device.kernel_spec import KernelSpec
from precast.plugins.device.launch import Launch, Workspace
from precast.plugins.gated_activation.device import launches as gated_activation
from precast.plugins.gated_activation.device.op_fields import GatedActivationFields
from precast.plugins.greedy_tokens.device import launches as greedy_tokens
from precast.plugins.greedy_tokens.device.op_fields import GreedyTokensFields
from precast.plugins.rms_norm.device import launches as rms_norm
from precast.plugins.rms_norm.device.op_fields import RmsNormFields
from precast.plugins.top_candidates.device import launches as top_candidates
from precast.plugins.top_candidates.device.op_fields import TopCandidatesFields

REPEATS = 20
"""In a graph."""
CANDIDATES = 64


@dataclass(frozen=True)
class RowOp:
    """An op on rows.

    Attributes:
        bytes_of_a_row: Of each buffer that has rows.
        other_bytes: Of each that has none.
    """

    name: str
    specs: Sequence[KernelSpec]
    launches: Callable[[int], Sequence[Launch]]
    bytes_of_a_row: Mapping[str, int]
    other_bytes: Mapping[str, int]
    workspace: Callable[[int], Workspace] | None = None


def row_ops(hidden: int, intermediate: int, vocabulary: int) -> list[RowOp]:
    norm = RmsNormFields(hidden, 1e-5, 1, "bfloat16")
    gate = GatedActivationFields("silu", intermediate, "bfloat16")
    greedy, top = GreedyTokensFields(vocabulary), TopCandidatesFields(vocabulary, CANDIDATES)

    def of(module: Any, fields: Any) -> Callable[[int], Any]:
        return lambda rows: module.launches(fields, rows)

    return [
        RowOp(
            "RmsNorm with a residual",
            rms_norm.kernel_specs(norm),
            of(rms_norm, norm),
            dict.fromkeys(("x", "residual", "y", "total"), 2 * hidden),
            {"weight": 2 * hidden},
        ),
        RowOp(
            "GatedActivation",
            gated_activation.kernel_specs(gate),
            of(gated_activation, gate),
            {"gate_up": 4 * intermediate, "output": 2 * intermediate},
            {},
        ),
        RowOp(
            "GreedyTokens",
            greedy_tokens.kernel_specs(greedy),
            of(greedy_tokens, greedy),
            {"logits": 4 * vocabulary, "tokens": 4, "log_sums": 4},
            {},
            lambda rows: greedy_tokens.workspace(greedy, rows),
        ),
        RowOp(
            "TopCandidates",
            top_candidates.kernel_specs(top),
            of(top_candidates, top),
            {"logits": 4 * vocabulary, "candidate_ids": 4 * CANDIDATES, "candidate_logits": 4 * CANDIDATES},
            {},
            lambda rows: top_candidates.workspace(top, rows),
        ),
    ]


def seconds(gpu: Gpu, op: RowOp, rows: int) -> float:
    """Median time of the op for so many rows, of zeros."""
    launcher, regions = gpu.launcher(op.specs), op.workspace(rows) if op.workspace is not None else None
    sizes = {name: rows * size for name, size in op.bytes_of_a_row.items()} | dict(op.other_bytes)
    if regions is not None:
        sizes["workspace"] = regions.size_bytes
    with gpu.memory(sizes) as addresses:
        for region in () if regions is None else regions.regions:
            addresses[region.name] = addresses["workspace"] + region.offset
        steps = op.launches(rows)

        def run() -> None:
            for launch in steps:
                launcher.launch(launch, addresses, gpu.stream)

        return gpu.seconds(run, REPEATS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--intermediate", type=int, default=14336)
    parser.add_argument("--vocabulary", type=int, default=128256)
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 32, 256])
    args = parser.parse_args()
    name, bandwidth = measure_bandwidth()
    gpu = Gpu()
    print(f"{name}: {bandwidth / 1e9:.0f} GB/s\n")
    print("| op | rows | microseconds | of the floor |")
    print("| --- | --- | --- | --- |")
    for op in row_ops(args.hidden, args.intermediate, args.vocabulary):
        for rows in args.rows:
            time_s = seconds(gpu, op, rows)
            floor = (rows * sum(op.bytes_of_a_row.values()) + sum(op.other_bytes.values())) / bandwidth
            print(f"| {op.name} | {rows} | {time_s * 1e6:.1f} | {time_s / floor:.2f} |", flush=True)


if __name__ == "__main__":
    main()
