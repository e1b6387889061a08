"""Promise 6 under load: soak.cpp pushes 10,000 requests through an engine whose pool is far too small."""

import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from precast.runtime import Engine
from precast.runtime.library import library_path, onnxruntime_path
from precast.runtime.requests import CapacityPolicy

SOURCE = Path(__file__).with_name("soak.cpp")
INCLUDE = Path(__file__).resolve().parents[2] / "runtime" / "native" / "include"
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror"]
NUM_REQUESTS = 10_000
NUM_BLOCKS = 24  # of 16 tokens: three sequences of the greatest length, and 16 may run

Soak = Callable[..., Mapping[str, int]]


@pytest.fixture(scope="module")
def soak(tmp_path_factory: pytest.TempPathFactory, tiny_engine: Callable[..., Path]) -> Soak:
    executable = tmp_path_factory.mktemp("soak") / "soak"
    files = [str(SOURCE), str(library_path()), "-o", str(executable), "-pthread"]
    subprocess.run(["c++", "-std=c++20", "-O1", *WARNINGS, f"-I{INCLUDE}", *files], check=True)
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(library_path().parent),
        "PRECAST_ONNXRUNTIME": str(onnxruntime_path()),
    }
    path = tiny_engine("gqa")
    with Engine(path) as engine:
        block_bytes = engine.info["kv_cache_bytes"] // engine.info["num_blocks"]

    def run(seed: int, policy: CapacityPolicy) -> Mapping[str, int]:
        arguments = [path, NUM_REQUESTS, seed, NUM_BLOCKS * block_bytes, int(policy)]
        done = subprocess.run(
            [str(executable), *map(str, arguments)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        words = done.stdout.split()
        return dict(zip(words[::2], map(int, words[1::2]), strict=True))

    return run


@pytest.mark.slow
@pytest.mark.parametrize("policy", [CapacityPolicy.MAX_UTILIZATION, CapacityPolicy.GUARANTEED_NO_EVICT])
def test_every_request_ends_once_and_nothing_is_left(soak: Soak, policy: CapacityPolicy) -> None:
    figures = soak(seed=int(policy) + 1, policy=policy)
    # The load was what it is meant to be: everything that can happen did.
    assert 800 < figures["refused"] < 1200
    for what in ("queue_full", "cancelled", "timeout", "stop", "length", "reused"):
        assert figures[what] > 50, what
    assert (figures["preemptions"] > 50) == (policy is CapacityPolicy.MAX_UTILIZATION)
    assert figures["blocks"] == NUM_BLOCKS
    assert figures["after"] <= figures["before"] * 1.02
