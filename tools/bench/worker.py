"""One engine, one piece of work, one process; started by compare.py in the engine's own environment.

    python worker.py prepare JOB.json      writes the engine's files
    python worker.py run JOB.json          loads them, warms up, runs the workload, writes the job's "result" file

W5 has no warm-up: the process's start is part of it.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import memory
from peers.base import Adapter
from workloads import Workload


def main() -> None:
    command, job_file = sys.argv[1:]
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    adapter = cast(Adapter, importlib.import_module(f"peers.{job['adapter']}").Adapter(**job["options"]))
    files = Path(job["files"])
    if command == "prepare":
        adapter.prepare(Path(job["checkpoint"]), files)
        return
    result = run(adapter, files, job)
    Path(job["result"]).write_text(json.dumps(result), encoding="utf-8")


def run(adapter: Adapter, files: Path, job: dict[str, Any]) -> dict[str, Any]:
    workload = Workload.from_json(job["workload"])
    before_load_ns = time.monotonic_ns()
    adapter.load(files, workload, job["num_threads"])
    loaded_ns = time.monotonic_ns()
    if job["warm_up"] is not None:
        adapter.run(Workload.from_json(job["warm_up"]))
    submitted_ns = time.monotonic_ns()
    runs = adapter.run(workload)
    # After the clock: reading it costs tens of milliseconds, and what was touched stays touched.
    usage = memory.process_tree_usage()
    for request, one in zip(workload.requests, runs, strict=True):
        if len(one.token_ids) != request.num_output_tokens:
            raise RuntimeError(
                f"{job['adapter']} gave {len(one.token_ids)} tokens where {request.num_output_tokens} were asked for"
            )
    return {
        "load_s": (loaded_ns - before_load_ns) / 1e9,
        "submitted_ns": submitted_ns,
        "requests": [asdict(one) for one in runs],
        "memory": asdict(usage),
        "about": asdict(adapter.about()),
    }


if __name__ == "__main__":
    main()
