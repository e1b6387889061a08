"""Measures precast on the workloads W1 (one stream) and W5 (process start to first token), beside this machine's floor.

    python tools/bench/run.py build/bench/llama-1.1b            # the checkpoint of make_checkpoint.py
    python tools/bench/run.py CHECKPOINT --workloads w1 --runs 7 --json

Each run of a workload stands between two runs of the bandwidth test, so that a figure and its floor are of the same
minute; what is quoted is the median of the runs and of the ratios. Machines are shared: compare ratios.

W1: a prompt of 128 tokens, 64 tokens out, greedy, end of sequence ignored. Decoding only, from the first token to the
last. Its floor is the bytes of weights that one token reads over the bandwidth of the moment.
W5: from the start of the process to the first token of a prompt of 8 tokens, page cache warm, once through Python's
front door and once from C.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from machine import Bandwidth, compile_program

W1_SCRIPT = """
import json, sys
from precast import LLM, SamplingParams
llm = LLM(model=sys.argv[1], skip_tokenizer_init=True, num_threads=int(sys.argv[2]))
params = SamplingParams(max_tokens=64, temperature=0, ignore_eos=True)
prompt = [1 + (7 * i) % 1000 for i in range(128)]
llm.generate(prompt, params, use_tqdm=False)
metrics = llm.generate(prompt, params, use_tqdm=False).metrics
decode_s = (metrics.last_token_ns - metrics.first_token_ns) / 1e9
print(json.dumps({"tokens_per_s": 63 / decode_s, "ttft_s": (metrics.first_token_ns - metrics.submitted_ns) / 1e9}))
llm.shutdown()
"""

W5_SCRIPT = """
import sys
from precast import LLM, SamplingParams
llm = LLM(model=sys.argv[1])
output = llm.generate("abc def ghi jkl ", SamplingParams(max_tokens=1, temperature=0), use_tqdm=False)
print(output.outputs[0].token_ids[0], flush=True)
assert len(output.prompt_token_ids) == 8, output.prompt_token_ids  # with the tokenizer of make_checkpoint.py
llm.shutdown()
"""


@dataclass(frozen=True)
class Floor:
    """What no kernel can beat: the weights that one token reads, at the bandwidth of the moment."""

    weight_bytes: int
    bandwidth_gb_s: float

    @property
    def tokens_per_s(self) -> float:
        return self.bandwidth_gb_s * 1e9 / self.weight_bytes


class Bench:
    def __init__(self, checkpoint: Path, work: Path, threads: int) -> None:
        self.checkpoint = checkpoint
        self.work = work
        self.threads = threads
        self.work.mkdir(parents=True, exist_ok=True)
        self.engine = self.work / f"{checkpoint.name}.engine"
        self.bandwidth = Bandwidth(work, threads)

    def build_engine(self) -> None:
        if not self.engine.exists():
            subprocess.run(["precast", "build", str(self.checkpoint), "--output", str(self.engine)], check=True)

    def streamed_bytes(self) -> int:
        """Bytes that a decoded token reads: every packed weight but the embedding, of which it reads one row."""
        from precast.checkpoints.engine_dir import read_manifest
        from precast.checkpoints.weights_reader import read_weights_index

        manifest = read_manifest(self.engine)
        index = read_weights_index(self.engine / manifest.ranks[0].weights)
        sizes = {tensor.spec.name: tensor.spec.size_bytes for tensor in index.tensors}
        tied = not any(name.startswith("lm_head") for name in sizes)
        return sum(size for name, size in sizes.items() if tied or not name.startswith("embedding"))

    def w1(self) -> dict[str, float]:
        before = self.bandwidth.gb_s()
        command = [sys.executable, "-c", W1_SCRIPT, str(self.engine), str(self.threads)]
        result: dict[str, float] = json.loads(
            subprocess.run(command, check=True, capture_output=True, text=True).stdout
        )
        floor = Floor(self.streamed_bytes(), (before + self.bandwidth.gb_s()) / 2)
        return result | {
            "bandwidth_gb_s": floor.bandwidth_gb_s,
            "floor_tokens_per_s": floor.tokens_per_s,
            "share_of_floor": result["tokens_per_s"] / floor.tokens_per_s,
        }

    def w5(self) -> dict[str, float]:
        prefix, onnxruntime = _installed_paths()
        program = compile_program(
            "first_token.c",
            self.work,
            ["cc", "-std=c11", "-O2", f"-I{prefix}/include", f"-L{prefix}/lib"],
            "-lprecast",
            f"-Wl,-rpath,{prefix}/lib",
        )
        environment = os.environ | {"PRECAST_ONNXRUNTIME": onnxruntime}
        python = [sys.executable, "-c", W5_SCRIPT, str(self.engine)]
        return {
            "c_s": _seconds_to_first_line([str(program), str(self.engine)], environment),
            "python_s": _seconds_to_first_line(python, environment),
        }


def _installed_paths() -> tuple[str, str]:
    """The folder with precast's header and library, and ONNX Runtime's library."""
    from precast.runtime.library import library_path, onnxruntime_path

    return str(library_path().parent.parent), str(onnxruntime_path())


def _seconds_to_first_line(command: list[str], environment: dict[str, str]) -> float:
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        process.stdout.readline()
        elapsed_s = time.perf_counter() - start
        process.stdout.read()
    if process.returncode != 0:
        raise RuntimeError(f"{command[0]} ended with status {process.returncode}")
    return elapsed_s


def measure(name: str, run: Callable[[], dict[str, float]], runs: int) -> dict[str, dict[str, float]]:
    """Minimum, median and maximum of each figure, after one run that warms the page cache and is not counted."""
    run()
    results = [run() for _ in range(runs)]
    figures = {}
    for key in results[0]:
        values = [result[key] for result in results]
        figures[key] = {"min": min(values), "median": statistics.median(values), "max": max(values)}
        print(f"{name} {key}: {figures[key]['median']:.3f} ({min(values):.3f} - {max(values):.3f})", file=sys.stderr)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--workloads", nargs="+", choices=["w1", "w5"], default=["w1", "w5"])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--work", type=Path, default=Path("build/bench"), help="engine and programs are kept here")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    bench = Bench(args.checkpoint, args.work, args.threads)
    bench.build_engine()
    results = {name: measure(name, getattr(bench, name), args.runs) for name in args.workloads}
    if args.json:
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
