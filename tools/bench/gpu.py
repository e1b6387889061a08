"""Tokens per second on an NVIDIA GPU, beside Hugging Face and vLLM, and over what the memory's bandwidth allows.

    python tools/bench/make_checkpoint.py build/bench/llama-1.1b
    python tools/bench/gpu.py build/bench/llama-1.1b --engines tensorrt cuda hf --batch 1 8 64 --rounds 3

Engines take turns, each run in a process of its own: it loads, runs the work once on other tokens, and once by the
clock. All requests are submitted at once: as many prompts of as many tokens as are asked for, greedy, the end token
ignored. The floor of a step is the bytes of weights and of the KV cache that it reads, over the bandwidth
of a copy on this GPU; prompts are computed by the clock too, so figures of short outputs are further from it. Medians
over the rounds.

tensorrt and cuda are precast, with TensorRT and with ONNX Runtime. They and vllm run in this Python, hf with the torch
that is installed here. What is not installed is left out; so is a backend that refuses this GPU, with its sentence.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ENGINES = {"tensorrt": "tensorrt_rtx", "cuda": "cuda.bindings", "hf": "torch", "vllm": "vllm"}
"""And the package that each needs."""
BUILD_OPTIONS = {"tensorrt": ["--backend", "tensorrt"], "cuda": ["--device", "cuda"]}
"""Of those that are precast."""
COPY_BYTES = 1 << 30
COPIES = 20
VOCABULARY = 1000
"""Prompts are of the first so many ids, which every vocabulary has."""

Generate = Callable[[list[list[int]], int], None]
"""Runs prompts to so many output tokens each."""


@dataclass(frozen=True)
class Work:
    """`batch` prompts of `prompt` tokens, continued by `tokens`."""

    batch: int
    prompt: int
    tokens: int

    def prompts(self, first: int) -> list[list[int]]:
        """Different ones for different `first`, and no common prefix."""
        return [
            [3 + (first + 7919 * request + 31 * place) % VOCABULARY for place in range(self.prompt)]
            for request in range(self.batch)
        ]


# ------------------------------------------------------------------------------------------------------- one engine


def open_precast(backend: str, checkpoint: Path, work: Work) -> Generate:
    from precast import LLM, SamplingParams

    llm = LLM(engine_of(checkpoint, backend), skip_tokenizer_init=True, max_batch_size=work.batch)

    def generate(prompts: list[list[int]], tokens: int) -> None:
        llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True), use_tqdm=False)

    return generate


def engine_of(checkpoint: Path, backend: str) -> Path:
    return checkpoint.with_name(f"{checkpoint.name}-{backend}")


def open_hf(checkpoint: Path, work: Work) -> Generate:
    del work
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16).to("cuda")

    def generate(prompts: list[list[int]], tokens: int) -> None:
        ids = torch.tensor(prompts, device="cuda")
        mask = torch.ones_like(ids)
        model.generate(
            ids, attention_mask=mask, min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False, pad_token_id=0
        )
        torch.cuda.synchronize()

    return generate


def open_vllm(checkpoint: Path, work: Work) -> Generate:
    vllm: Any = importlib.import_module("vllm")
    llm = vllm.LLM(
        str(checkpoint), skip_tokenizer_init=True, max_num_seqs=work.batch, max_model_len=work.prompt + work.tokens
    )

    def generate(prompts: list[list[int]], tokens: int) -> None:
        params = vllm.SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)

    return generate


OPENERS: dict[str, Callable[[Path, Work], Generate]] = {
    "tensorrt": functools.partial(open_precast, "tensorrt"),
    "cuda": functools.partial(open_precast, "cuda"),
    "hf": open_hf,
    "vllm": open_vllm,
}


def run_once(engine: str, checkpoint: Path, work: Work) -> float:
    """Seconds of the work, in this process."""
    generate = OPENERS[engine](checkpoint, work)
    generate(work.prompts(1), work.tokens)  # kernels, graphs and caches of these shapes
    start = time.perf_counter()
    generate(work.prompts(5000), work.tokens)
    return time.perf_counter() - start


# ------------------------------------------------------------------------------------------------------ the machine


def measure_bandwidth() -> tuple[str, float]:
    """The GPU's name, and bytes per second of a copy within its memory, reads and writes together."""
    from cuda.bindings import driver

    from precast.plugins.device.driver import call_driver
    from precast.runtime.device.device import Device

    call_driver(driver, "cuInit", 0)
    device = Device(driver, 0)
    source, target = (device.allocate(COPY_BYTES, "a copy") for _ in range(2))
    device.copy_within(target, source, COPY_BYTES)
    device.synchronize()
    start = time.perf_counter()
    for _ in range(COPIES):
        device.copy_within(target, source, COPY_BYTES)
    device.synchronize()
    seconds = time.perf_counter() - start
    name = device.name
    device.close()
    return name, 2 * COPIES * COPY_BYTES / seconds


def floor_tokens_per_s(checkpoint: Path, work: Work, bandwidth: float) -> float:
    """With nothing but reading weights, and the KV cache at its mean length, in every step."""
    from precast.checkpoints.engine_dir import read_manifest
    from precast.checkpoints.engine_kv import kv_page_bytes

    weights = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    built = next(engine for name in BUILD_OPTIONS if (engine := engine_of(checkpoint, name)).exists())
    manifest = read_manifest(built)
    caches = manifest.ranks[0].kv_caches
    token_bytes = kv_page_bytes(caches) / manifest.build.tokens_per_block
    context = work.prompt + work.tokens / 2
    return work.batch * bandwidth / (weights + work.batch * context * token_bytes)


# ---------------------------------------------------------------------------------------------------------- outline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", help="an engine and its work, as JSON: run it once here and print the seconds")
    args = parser.parse_args()
    if args.child:
        child = json.loads(args.child)
        print(json.dumps(run_once(child["engine"], args.checkpoint, Work(**child["work"]))))
        return
    engines = [name for name in args.engines if is_installed(name)]
    for backend in BUILD_OPTIONS:  # one of them at least, for the size of the KV cache
        if backend in engines or not set(engines) & set(BUILD_OPTIONS):
            build_engine(args.checkpoint, backend, max(args.batch), args.prompt + args.tokens)
    name, bandwidth = measure_bandwidth()
    print(f"{name}: {bandwidth / 1e9:.0f} GB/s\n")
    print(f"| batch | engine | tokens/s | of {engines[0]} | of the floor |")
    print("| --- | --- | --- | --- | --- |")
    for batch in args.batch:
        work = Work(batch, args.prompt, args.tokens)
        compare(args.checkpoint, work, engines, args.rounds, floor_tokens_per_s(args.checkpoint, work, bandwidth))


def is_installed(engine: str) -> bool:
    if importlib.util.find_spec(ENGINES[engine]) is not None:
        return True
    print(f"{engine} is left out: {ENGINES[engine]} is not installed", file=sys.stderr)
    return False


def build_engine(checkpoint: Path, backend: str, batch: int, length: int) -> None:
    engine = engine_of(checkpoint, backend)
    if not engine.exists():
        command = [sys.executable, "-m", "precast", "build", str(checkpoint), "--output", str(engine)]
        options = ["--max-batch-size", str(batch), "--max-seq-len", str(length)]
        subprocess.run([*command, *BUILD_OPTIONS[backend], *options], check=True)


def compare(checkpoint: Path, work: Work, engines: Sequence[str], rounds: int, floor: float) -> None:
    """Print a row for each engine. They begin in turns, so that none always follows the same one."""
    seconds: dict[str, list[float]] = {engine: [] for engine in engines}
    for number in range(rounds):
        turn = number % len(engines)
        for engine in (*engines[turn:], *engines[:turn]):
            if engine in seconds:
                time_s = run_child(checkpoint, engine, work)
                if time_s is None:
                    del seconds[engine]
                else:
                    seconds[engine].append(time_s)
    speeds = {engine: work.batch * work.tokens / statistics.median(times) for engine, times in seconds.items()}
    for engine, speed in speeds.items():
        ratio = f"{speed / speeds[engines[0]]:.2f}" if engines[0] in speeds else ""
        print(f"| {work.batch} | {engine} | {speed:.0f} | {ratio} | {speed / floor:.2f} |", flush=True)


def run_child(checkpoint: Path, engine: str, work: Work) -> float | None:
    """Seconds; None, and a line that says why, where the engine cannot do it here."""
    child = json.dumps({"engine": engine, "work": asdict(work)})
    command = [sys.executable, __file__, str(checkpoint), "--child", child]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    if result.returncode:
        lines = result.stderr.strip().splitlines() or [f"it ended with status {result.returncode}"]
        print(f"{engine} is left out: {lines[-1]}", file=sys.stderr)
        return None
    return float(json.loads(result.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main()
