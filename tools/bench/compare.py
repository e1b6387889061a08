"""Measures precast beside other engines on the same work, alternating between them.

    python tools/bench/compare.py build/bench/llama-1.1b --workloads W3 W4 --rounds 3

Needs Python 3.10, a C++ compiler and a package index: everything else is made where it is missing, the checkpoint (of
make_checkpoint.py), an environment and converted files per engine, and is kept beside the checkpoint.

Every run is a process of its own: it loads, warms up on other tokens, runs the workload once. Engines take turns, in
another order in every round, each between two measurements of memory bandwidth, so that ratios are of the same minutes.
Figures are medians over the rounds (least - most); everything measured is in the JSON file that is named at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import report
from environments import Environments
from machine import Bandwidth, describe
from peers import DEFAULT_VARIANTS, VARIANTS, Variant
from workloads import NAMES, Workload, make_warm_up, make_workload

HERE = Path(__file__).resolve().parent
RECIPE_FILE = "made-by"  # among an engine's files: the recipe of the environment that wrote them


class Comparison:
    def __init__(self, checkpoint: Path, work: Path, num_threads: int, scale: int) -> None:
        self.checkpoint = checkpoint
        self.num_threads = num_threads
        self.scale = scale
        self.models = work / "models" / checkpoint.name
        self.jobs = work / "jobs"
        for folder in (self.models, self.jobs):
            folder.mkdir(parents=True, exist_ok=True)
        self.environments = Environments(work / "venvs")
        self.bandwidth = Bandwidth(work, num_threads)
        self.last_bandwidth_gb_s: float | None = None

    def make_checkpoint(self) -> None:
        if not self.checkpoint.exists():
            print(f"{self.checkpoint} is not there: writing the 1.1B model of make_checkpoint.py", file=sys.stderr)
            python = self.environments.python("precast")
            subprocess.run([str(python), str(HERE / "make_checkpoint.py"), str(self.checkpoint)], check=True)

    def prepare(self, name: str) -> None:
        """The environment and the files of a variant, where they are missing or of another version of the engine.

        Files are written beside, then renamed: half of them is none.
        """
        variant = VARIANTS[name]
        self.environments.python(variant.environment)
        recipe = repr(self.environments.recipe(variant.environment))
        files = self.models / variant.model
        if files.exists() and (files / RECIPE_FILE).read_text(encoding="utf-8") == recipe:
            return
        shutil.rmtree(files, ignore_errors=True)
        print(f"{name}: writing {files}", file=sys.stderr)
        partial = files.with_name(f"{files.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        self._worker("prepare", variant, {"checkpoint": str(self.checkpoint), "files": str(partial)})
        (partial / RECIPE_FILE).write_text(recipe, encoding="utf-8")
        partial.rename(files)

    def run(self, name: str, workload: Workload) -> dict[str, Any]:
        """One run between two measurements of bandwidth: the worker's result, its start, the figures."""
        variant = VARIANTS[name]
        result_file = self.jobs / "result.json"
        result_file.unlink(missing_ok=True)
        warm_up = make_warm_up(workload, self._vocab_size()).to_json() if workload.name != "W5" else None
        job = {
            "files": str(self.models / variant.model),
            "workload": workload.to_json(),
            "warm_up": warm_up,
            "num_threads": self.num_threads,
            "result": str(result_file),
        }
        before = self.last_bandwidth_gb_s or self.bandwidth.gb_s()  # after one run is before the next
        started_ns = self._worker("run", variant, job)
        self.last_bandwidth_gb_s = self.bandwidth.gb_s()
        bandwidth = (before + self.last_bandwidth_gb_s) / 2
        result: dict[str, Any] = json.loads(result_file.read_text(encoding="utf-8"))
        figures = report.figures(workload, started_ns, result) | {"bandwidth_gb_s": bandwidth}
        return result | {"started_ns": started_ns, "figures": figures}

    def workload(self, name: str) -> Workload:
        return make_workload(name, self._vocab_size(), self.scale)

    def _vocab_size(self) -> int:
        return cast(int, json.loads((self.checkpoint / "config.json").read_text(encoding="utf-8"))["vocab_size"])

    def _worker(self, command: str, variant: Variant, job: dict[str, Any]) -> int:
        """Runs a worker to its end; when it was started, in nanoseconds of CLOCK_MONOTONIC.

        Raises:
            subprocess.CalledProcessError: it failed; its standard error says why.
        """
        job_file = self.jobs / "job.json"
        job_file.write_text(
            json.dumps(job | {"adapter": variant.adapter, "options": dict(variant.options)}), encoding="utf-8"
        )
        python = self.environments.python(variant.environment)
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1"}
        started_ns = time.monotonic_ns()
        subprocess.run([str(python), str(HERE / "worker.py"), command, str(job_file)], check=True, env=environment)
        return started_ns


def compare(comparison: Comparison, workload: Workload, variants: Sequence[str], num_rounds: int) -> dict[str, Any]:
    """The variants on one workload: raw results, the summary, and the table, which is printed."""
    baseline = variants[0]
    rounds: list[dict[str, dict[str, Any]]] = []
    if workload.name == "W5":
        for name in variants:  # what is on disk is in the page cache from here on
            comparison.run(name, workload)
    for number in range(num_rounds):
        turn = number % len(variants)
        results = {}
        for name in (*variants[turn:], *variants[:turn]):
            results[name] = comparison.run(name, workload)
            headline, unit = report.HEADLINES[workload.name]
            value = results[name]["figures"][headline]
            print(f"{workload.name} round {number + 1}: {name} {value:.2f} {unit}", file=sys.stderr, flush=True)
        rounds.append({name: results[name] for name in variants})
    summary = report.summarize(
        workload.name, baseline, [{name: one["figures"] for name, one in results.items()} for results in rounds]
    )
    print(f"\n{report.table(workload.name, baseline, summary)}\n")
    last = rounds[-1]
    for name in variants:
        print(f"- {name}: {_describe(last[name]['about'], report.agreement(last[baseline], last[name]))}")
    return {
        "workload": {
            "name": workload.name,
            "num_requests": len(workload.requests),
            "num_prompt_tokens": workload.num_prompt_tokens,
            "num_output_tokens": workload.num_output_tokens,
        },
        "summary": {name: {key: asdict(value) for key, value in entry.items()} for name, entry in summary.items()},
        "rounds": rounds,
    }


def _describe(about: dict[str, Any], first_tokens_agree: float) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    precision = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in about["precision"].items())
    return f"{about['how']}; {precision}; {versions}; first tokens as the baseline's: {first_tokens_agree:.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="written first where it does not exist")
    parser.add_argument("--workloads", nargs="+", choices=NAMES, default=["W3", "W4"])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(DEFAULT_VARIANTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--work", type=Path, help="environments, files and results; default: the checkpoint's folder")
    parser.add_argument("--scale", type=int, default=1, help="divides every workload, for trying things out")
    args = parser.parse_args()
    chosen = {name: [one for one in args.variants if VARIANTS[one].fits(name)] for name in args.workloads}
    if args.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {args.rounds}")
    for name, variants in chosen.items():
        if not variants:
            parser.error(f"none of {', '.join(args.variants)} is for {name}")
    work = (args.work or args.checkpoint.parent).resolve()
    comparison = Comparison(args.checkpoint.resolve(), work, args.threads, args.scale)
    comparison.make_checkpoint()
    for name in {variant: None for variants in chosen.values() for variant in variants}:
        comparison.prepare(name)
    results: dict[str, Any] = {"machine": describe(), "num_threads": args.threads, "scale": args.scale, "workloads": {}}
    output = work / f"compare-{time.strftime('%Y%m%d-%H%M%S')}.json"
    for name, variants in chosen.items():
        results["workloads"][name] = compare(comparison, comparison.workload(name), variants, args.rounds)
        output.write_text(json.dumps(results, indent=1), encoding="utf-8")
    print(f"\neverything measured: {output}")


if __name__ == "__main__":
    main()
