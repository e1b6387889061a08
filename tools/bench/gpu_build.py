"""Builds one checkpoint for GPUs, in every format, and reports time, memory and the size of the engine.

    python tools/bench/make_checkpoint.py build/bench/llama-1.1b
    python tools/bench/gpu_build.py build/bench/llama-1.1b

It needs no GPU. Each build is a process of its own; its memory is sampled ten times a second, over the process and its
children: private memory (what the build costs) and mapped files (weights that the system may drop again).
Triton keeps compiled kernels, and a second build finds them: with --cold each build compiles its own.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from memory import process_tree_usage

TARGETS = {"int8": "portable", "int4": "portable", "fp8": "sm89,sm120", "nvfp4": "sm120"}
BUILDS: dict[str, list[str]] = {
    "bfloat16": ["--backend", "tensorrt"],
    **{name: ["--backend", "tensorrt", "--quant", name, "--target", TARGETS[name]] for name in TARGETS},
    "bfloat16, separate": ["--backend", "tensorrt", "--weights", "separate"],
    "bfloat16, device cuda": ["--device", "cuda"],
}
"""Rows and their options."""
SAMPLES_PER_S = 10


@dataclass(frozen=True)
class Row:
    """One build."""

    name: str
    target: str
    seconds: float
    peak_private_bytes: int
    peak_mapped_bytes: int
    graph_bytes: int
    weights_bytes: int

    def text(self) -> str:
        gigabytes = (self.peak_private_bytes, self.peak_mapped_bytes, self.graph_bytes, self.weights_bytes)
        return (
            f"| {self.name} | {self.target} | {self.seconds:.0f} | "
            + " | ".join(f"{size / 1e9:.2f}" for size in gigabytes)
            + " |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--cold", action="store_true", help="compile kernels in each build")
    parser.add_argument("--only", nargs="+", choices=BUILDS, default=list(BUILDS))
    args = parser.parse_args()
    print(
        "| weights | target | seconds | private memory GB | mapped files GB | plan or graph GB | weights beside it GB |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in args.only:
        print(build(args.checkpoint, name, cold=args.cold).text(), flush=True)


def build(checkpoint: Path, name: str, *, cold: bool) -> Row:
    """Build into a temporary directory beside the checkpoint, and delete it."""
    with tempfile.TemporaryDirectory(dir=checkpoint.parent) as directory:
        output, errors = Path(directory, "engine"), Path(directory, "errors")
        environment = dict(os.environ)
        if cold:
            environment["TRITON_CACHE_DIR"] = str(Path(directory, "triton"))
        command = [sys.executable, "-m", "precast", "build", str(checkpoint), "--output", str(output)]
        start = time.perf_counter()
        with errors.open("wb") as stderr:
            process = subprocess.Popen([*command, *BUILDS[name]], stdout=stderr, stderr=stderr, env=environment)
            private, mapped = watch(process)
        seconds = time.perf_counter() - start
        if process.returncode:
            raise SystemExit(errors.read_text())
        rank = output / "rank0"
        weights = rank / "weights.bin"
        (graph,) = (path for path in rank.iterdir() if path != weights)
        row = Row(
            name,
            TARGETS.get(name, "portable"),
            seconds,
            private,
            mapped,
            graph.stat().st_size,
            weights.stat().st_size if weights.exists() else 0,
        )
        shutil.rmtree(output)
        return row


def watch(process: subprocess.Popen[bytes]) -> tuple[int, int]:
    """The greatest private and mapped memory of the process and its children, until it ends."""
    private = mapped = 0
    while process.poll() is None:
        try:
            usage = process_tree_usage(process.pid)
        except (OSError, KeyError):
            usage = None  # one of them has just ended
        if usage is not None:
            private, mapped = max(private, usage.pss_private), max(mapped, usage.pss_mapped)
        time.sleep(1 / SAMPLES_PER_S)
    return private, mapped


if __name__ == "__main__":
    main()
