"""Promise 6 under load: soak.cpp pushes 10,000 requests through an engine whose pool is far too small."""

import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from precast.runtime.library import library_path, onnxruntime_path
from precast.runtime.requests import CapacityPolicy
from tests.runtime.comparing import MODELS, TinyModel, block_bytes

SOURCE = Path(__file__).with_name("soak.cpp")
INCLUDE = Path(__file__).resolve().parents[2] / "runtime" / "native" / "include"
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror"]
NUM_BLOCKS = 24  # of 16 tokens, in each KV group: three sequences of the greatest length, and 16 may run

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

    def run(model: TinyModel, num_requests: int, seed: int, policy: CapacityPolicy) -> Mapping[str, int]:
        path = model.engine(tiny_engine)
        kv_cache_bytes = NUM_BLOCKS * model.num_kv_groups * block_bytes(path)
        arguments = [path, num_requests, seed, kv_cache_bytes, int(policy)]
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
@pytest.mark.parametrize(
    ("model", "num_requests", "policy"),
    [
        ("float32", 10_000, CapacityPolicy.MAX_UTILIZATION),
        ("float32", 10_000, CapacityPolicy.GUARANTEED_NO_EVICT),
        ("some_windows", 3_000, CapacityPolicy.MAX_UTILIZATION),
    ],
)
def test_every_request_ends_once_and_nothing_is_left(
    soak: Soak, model: str, num_requests: int, policy: CapacityPolicy
) -> None:
    """`before` is what the process has directly after the first step, which is as large as a step can be: soak.cpp
    reads that from the engine's statistics. What comes later, such as a fuller queue, must fit into the 2%."""
    figures = soak(MODELS[model], num_requests, seed=int(policy) + 1, policy=policy)
    # The load was what it is meant to be: everything that can happen did.
    assert 0.08 < figures["refused"] / num_requests < 0.12
    for what in ("queue_full", "cancelled", "timeout", "stop", "length", "reused"):
        assert figures[what] > num_requests // 200, what
    assert (figures["preemptions"] > num_requests // 200) == (policy is CapacityPolicy.MAX_UTILIZATION)
    assert figures["blocks"] == NUM_BLOCKS * MODELS[model].num_kv_groups
    assert figures["after"] <= figures["before"] * 1.02
