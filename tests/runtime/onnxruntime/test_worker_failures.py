"""A worker that cannot begin, fails, or is killed: what is said of it, and that nothing hangs and nobody is left."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from precast.runtime import Engine, EngineLoadError, EngineOptions
from precast.runtime.errors import ErrorCode
from precast.version import __version__
from tests.runtime.onnxruntime.cpu_provider import NUM_REHEARSED, RUN
from tests.runtime.tensorrt import test_worker_failures as of_tensorrt
from tests.runtime.tensorrt.test_worker_failures import (
    OUT_OF_MEMORY,
    check_rank_failed,
    refused,
    test_a_worker_that_is_killed,
    test_more_memory_for_pools_than_there_is,
    test_no_gpu,
    test_options_of_the_other_backend,
    test_shutting_down_in_the_middle,
    test_two_engines_at_once,
)
from tests.runtime.tensorrt.test_worker_failures import engine_path as engine_path
from tests.runtime.tensorrt.test_worker_failures import log as log
from tests.runtime.tensorrt.test_worker_failures import options as options
from tests.runtime.tensorrt.test_worker_failures import running as running
from tests.runtime.tensorrt.workers import fake_workers, greedy, run

pytestmark = pytest.mark.usefixtures("cpu_workers")

__all__ = [
    "test_a_worker_that_is_killed",
    "test_more_memory_for_pools_than_there_is",
    "test_no_gpu",
    "test_options_of_the_other_backend",
    "test_shutting_down_in_the_middle",
    "test_two_engines_at_once",
]


# -------------------------------------------------------------------------------------------------------------- loading


@pytest.fixture
def copied(engine_path: Path, tmp_path: Path) -> Callable[[str], Path]:
    """`copied("engine.json")`: that file, which may be written, of an engine that is a copy."""
    engine = tmp_path / "engine"
    shutil.copytree(engine_path, engine)

    def file(name: str) -> Path:
        (engine / name).chmod(0o644)
        return engine / name

    return file


def test_a_gpu_that_is_too_old(engine_path: Path, tmp_path: Path) -> None:
    with fake_workers(tmp_path, capability=[7, 5], name="NVIDIA T4"):
        error = refused(engine_path)
    assert type(error) is EngineLoadError
    assert error.code == ErrorCode.UNSUPPORTED_ENGINE
    assert str(error) == (
        f"rank 0: {engine_path}: GPU 0 (NVIDIA T4) has compute capability 7.5, and the engine needs 8.0 or later: "
        "build one for the CPU"
    )


def test_an_older_onnx_runtime(copied: Callable[[str], Path], tmp_path: Path) -> None:
    """Of the worker, which is not that of the process that has the engine."""
    file = copied("engine.json")
    manifest = json.loads(file.read_text())
    manifest["backend_requirements"]["onnxruntime_min"] = "99.0"
    file.write_text(json.dumps(manifest))
    with fake_workers(tmp_path):
        error = refused(file.parent)
    assert type(error) is EngineLoadError
    assert str(error).startswith(f"rank 0: {file.parent}: the engine needs ONNX Runtime 99.0 or later, ")


def test_an_op_that_this_version_lacks(copied: Callable[[str], Path], tmp_path: Path) -> None:
    file = copied("engine.json")
    manifest = json.loads(file.read_text())
    manifest["requires"].append("ai.precast.New/7")
    file.write_text(json.dumps(manifest))
    with fake_workers(tmp_path):
        error = refused(file.parent)
    assert type(error) is EngineLoadError
    assert error.code == ErrorCode.UNSUPPORTED_ENGINE
    assert str(error) == (
        f"rank 0: {file}: the engine requires ai.precast.New/7, which this precast {__version__} does not have: update "
        "precast, or rebuild the engine with this version"
    )


def test_a_graph_that_is_damaged(copied: Callable[[str], Path], tmp_path: Path) -> None:
    graph = copied("rank0/model.onnx")
    with graph.open("r+b") as file:
        file.write(b"something")  # of the same size: only ONNX Runtime sees it
    with fake_workers(tmp_path):
        error = refused(graph.parents[1])
    assert type(error) is EngineLoadError
    assert error.code == ErrorCode.UNSUPPORTED_ENGINE
    assert str(error).startswith("rank 0: ONNX Runtime ")
    assert f" refuses Load model from {graph} failed:" in str(error)


@pytest.mark.parametrize(
    ("call", "number", "said"),
    [
        ("cuStreamCreate", 1, "DeviceError: cuStreamCreate: out of memory"),
        ("cuMemHostAlloc", 4, "bytes of host memory for "),
        (RUN, 1, "DeviceError: ONNX Runtime cannot run "),  # the largest step
    ],
)
def test_a_call_that_fails_while_it_loads(call: str, number: int, said: str, engine_path: Path, tmp_path: Path) -> None:
    of_tensorrt.test_a_call_that_fails_while_it_loads(call, number, said, engine_path, tmp_path)


def test_a_python_that_has_no_precast(engine_path: Path, tmp_path: Path) -> None:
    """What it needs is said of either backend."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    with fake_workers(tmp_path):
        error = refused(engine_path, EngineOptions(python_path=str(python)))
    assert str(error).startswith("rank 0 (process ")
    assert "to a Python that has precast[tensorrt-runtime] or precast[cuda-runtime]" in str(error)


# -------------------------------------------------------------------------------------------------------------- running


@pytest.mark.parametrize(("call", "number"), [("cuEventSynchronize", 4), ("cuGraphLaunch", 2)])
def test_a_device_that_fails_in_the_middle(
    call: str, number: int, engine_path: Path, tmp_path: Path, options: EngineOptions
) -> None:
    of_tensorrt.test_a_device_that_fails_in_the_middle(call, number, engine_path, tmp_path, options)


def test_a_step_that_onnx_runtime_refuses(engine_path: Path, tmp_path: Path, options: EngineOptions) -> None:
    """It says what ONNX Runtime says; the session is not trusted any more."""
    failure = {"call": RUN, "number": NUM_REHEARSED + 1, "status": OUT_OF_MEMORY}
    with fake_workers(tmp_path, fail=failure), Engine(engine_path, options) as engine:
        check_rank_failed(run(engine, [greedy([5, 9, 200])]), "ONNX Runtime cannot run ")
        check_rank_failed(run(engine, [greedy([5])]), "ONNX Runtime cannot run ")
