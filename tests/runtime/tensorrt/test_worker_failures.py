"""A worker that cannot begin, fails, or is killed: what is said of it, and that nothing hangs and nobody is left."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from precast.checkpoints.engine_dir import read_manifest
from precast.checkpoints.engine_kv import kv_page_bytes
from precast.runtime import (
    Engine,
    EngineLoadError,
    EngineOptions,
    EngineRequest,
    FinishReason,
    NativeError,
    RankFailedError,
)
from precast.runtime.errors import ErrorCode
from tests.runtime.tensorrt.conftest import Continuation
from tests.runtime.tensorrt.fake_cuda.machine import MACHINE
from tests.runtime.tensorrt.fake_packages import tensorrt_rtx
from tests.runtime.tensorrt.workers import Answer, Workers, fake_workers, greedy, run, wait_until
from tests.runtime.tensorrt.worlds import NUM_BLOCKS, FakeEngine, open_world

LAUNCH_FAILED, OUT_OF_MEMORY = 719, 2


@pytest.fixture
def engine_path(fake_engine: FakeEngine) -> Path:
    return fake_engine("float16")


def refused(engine: Path, options: EngineOptions | None = None) -> NativeError:
    with pytest.raises(NativeError) as caught:
        Engine(engine, options)
    assert "\n" not in str(caught.value)
    return caught.value


def _page_bytes(engine: Path) -> int:
    return kv_page_bytes(read_manifest(engine).ranks[0].kv_caches)


# -------------------------------------------------------------------------------------------------------------- loading


def test_a_gpu_that_is_too_old(engine_path: Path, tmp_path: Path) -> None:
    with fake_workers(tmp_path, capability=[7, 5], name="NVIDIA T4"):
        error = refused(engine_path)
    assert type(error) is EngineLoadError
    assert error.code == ErrorCode.UNSUPPORTED_ENGINE
    assert str(error) == (
        f"rank 0: {engine_path}: GPU 0 (NVIDIA T4) has compute capability 7.5, and the engine needs 8.0 or later: "
        "rebuild it for this GPU"
    )


def test_no_gpu(engine_path: Path, tmp_path: Path) -> None:
    with fake_workers(tmp_path, num_devices=0):
        error = refused(engine_path)
    assert type(error) is EngineLoadError
    assert str(error).startswith(f"rank 0: {engine_path}: the engine runs on an NVIDIA GPU, and CUDA finds none ")


def test_too_little_memory_for_pools(engine_path: Path, tmp_path: Path) -> None:
    with open_world(engine_path):
        taken = MACHINE.devices[0].used_bytes - (NUM_BLOCKS + 1) * _page_bytes(engine_path)
    with fake_workers(tmp_path, free_bytes=taken + _page_bytes(engine_path)):
        error = refused(engine_path)
    assert error.code == ErrorCode.RESOURCE_EXHAUSTED
    assert "Fake GPU: " in str(error)
    assert "free when the network is loaded, and a KV block takes" in str(error)


def test_more_memory_for_pools_than_there_is(engine_path: Path, tmp_path: Path) -> None:
    with fake_workers(tmp_path):
        error = refused(engine_path, EngineOptions(kv_cache_bytes=1 << 30))
    assert error.code == ErrorCode.RESOURCE_EXHAUSTED
    assert "bytes of its memory for the KV cache cannot be had: give smaller kv_cache_bytes" in str(error)


@pytest.mark.parametrize(
    ("call", "number", "said"),
    [
        ("cuStreamCreate", 1, "DeviceError: cuStreamCreate: out of memory"),
        ("create_execution_context", 2, "DeviceError: TensorRT cannot make an execution context: "),
        ("deserialize_cuda_engine", 1, "TensorRT refuses the plan: "),
        ("cuMemHostAlloc", 4, "bytes of host memory for "),
    ],
)
def test_a_call_that_fails_while_it_loads(call: str, number: int, said: str, engine_path: Path, tmp_path: Path) -> None:
    with fake_workers(tmp_path, fail={"call": call, "number": number, "status": OUT_OF_MEMORY}):
        assert said in str(refused(engine_path))


def test_a_plan_that_is_damaged(engine_path: Path, tmp_path: Path) -> None:
    engine = tmp_path / "engine"
    shutil.copytree(engine_path, engine)
    plan = engine / "rank0" / "model.plan"
    plan.chmod(0o644)
    with plan.open("r+b") as file:
        file.write(b"something")  # of the same size: only TensorRT sees it
    with fake_workers(tmp_path):
        error = refused(engine)
    assert type(error) is EngineLoadError
    assert str(error).startswith(f"rank 0: {plan}: TensorRT refuses the plan: ")


def test_no_python(engine_path: Path, tmp_path: Path) -> None:
    with fake_workers(tmp_path):
        error = refused(engine_path, EngineOptions(python_path=str(tmp_path / "no-python")))
    assert "no-python" in str(error)


def test_a_python_that_has_no_precast(engine_path: Path, tmp_path: Path) -> None:
    """Its own words are in the log, and the engine does not wait for it."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'ModuleNotFoundError: No module named precast' >&2\nexit 1\n")
    python.chmod(0o755)
    lines: list[str] = []
    with fake_workers(tmp_path):
        options = EngineOptions(python_path=str(python), log=lambda level, line: lines.append(line))
        error = refused(engine_path, options)
    assert str(error).startswith("rank 0 (process ")
    assert "set PRECAST_PYTHON or the option python_path to a Python that has precast[tensorrt-runtime]" in str(error)
    assert any("No module named precast" in line for line in lines)


def test_another_version_of_tensorrt(engine_path: Path, tmp_path: Path) -> None:
    """A package before the fake one, with the same name and another version."""
    package = tmp_path / "packages" / "tensorrt_rtx"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("__version__ = '9.9'\n")
    with fake_workers(tmp_path), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{package.parent}:{os.environ['PYTHONPATH']}")
        error = refused(engine_path)
    assert type(error) is EngineLoadError
    assert (
        f"built with tensorrt_rtx {tensorrt_rtx.__version__}, and its plans load in no other version; this is 9.9"
        in str(error)
    )


# -------------------------------------------------------------------------------------------------------------- running


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def options(log: list[str]) -> EngineOptions:
    return EngineOptions(max_batch_size=4, max_num_tokens=16, log=lambda level, line: log.append(line))


def check_rank_failed(answers: list[Answer], text: str) -> None:
    for answer in answers:
        assert answer.end.reason is FinishReason.ERROR
        assert isinstance(answer.end.error, RankFailedError)
        assert "rank 0" in str(answer.end.error)
        assert text in str(answer.end.error)


@pytest.mark.parametrize(
    ("call", "number"),
    [
        ("cuEventSynchronize", 3),
        ("cuEventQuery", 9),
        ("cuMemcpyHtoDAsync", 4),
        ("cuGraphLaunch", 2),
    ],
)
def test_a_device_that_fails_in_the_middle(
    call: str, number: int, engine_path: Path, tmp_path: Path, options: EngineOptions
) -> None:
    """All requests of now and later fail, with its words; and the end is an orderly one."""
    requests = [greedy([5 + i, 9, 200], 40) for i in range(3)]
    failure = {"call": call, "number": number, "status": LAUNCH_FAILED}
    with fake_workers(tmp_path, fail=failure), Engine(engine_path, options) as engine:
        check_rank_failed(run(engine, requests), "launch failed")
        check_rank_failed(run(engine, requests[:1]), "launch failed")


def test_a_step_that_tensorrt_refuses(engine_path: Path, tmp_path: Path, options: EngineOptions) -> None:
    """It says what TensorRT says; the session is not trusted any more."""
    failure = {"call": "execute_async_v3", "number": 1}
    with fake_workers(tmp_path, fail=failure), Engine(engine_path, options) as engine:
        check_rank_failed(run(engine, [greedy([5, 9, 200])]), "TensorRT cannot run ")


def test_graphs_that_cannot_be_had_are_a_line_of_the_log(
    engine_path: Path,
    tmp_path: Path,
    options: EngineOptions,
    log: list[str],
    continuations: list[Continuation],
) -> None:
    failure = {"call": "cuGraphInstantiate", "number": 1, "status": 801}
    with fake_workers(tmp_path, fail=failure), Engine(engine_path, options) as engine:
        (answer,) = run(engine, [greedy(continuations[1].prompt)])
        assert answer.tokens == continuations[1].tokens
    (line,) = [line for line in log if "CUDA graphs are off" in line]
    assert line.startswith("rank 0")
    assert line.endswith("cuGraphInstantiate: not supported")


@pytest.fixture
def running(engine_path: Path, tmp_path: Path, options: EngineOptions) -> Iterator[tuple[Engine, int, Workers]]:
    """An engine, and the process of its rank."""
    with fake_workers(tmp_path) as workers:
        before = workers.running()
        with Engine(engine_path, options) as engine:
            (worker,) = set(workers.running()) - set(before)
            yield engine, worker, workers


def test_a_worker_that_is_killed(running: tuple[Engine, int, Workers]) -> None:
    engine, worker, _ = running
    handles = engine.submit([EngineRequest([5 + i, 9], max_tokens=60, ignore_eos=True) for i in range(3)])
    first = handles[0].get(timeout_s=60)
    os.kill(worker, signal.SIGKILL)
    answers = [Answer([*start, *handle.events()]) for start, handle in zip(([first], [], []), handles, strict=True)]
    check_rank_failed(answers, "was killed by SIGKILL")
    check_rank_failed(run(engine, [greedy([5])]), "was killed by SIGKILL")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_worker_that_is_ended_while_nothing_runs(
    number: signal.Signals, running: tuple[Engine, int, Workers]
) -> None:
    """SIGINT as well, which Python makes an exception of, and calls from C swallow that."""
    engine, worker, workers = running
    os.kill(worker, number)
    wait_until(lambda: worker not in workers.running(), "the worker goes on")
    check_rank_failed(run(engine, [greedy([5])]), f"was killed by {number.name}")


def test_a_worker_that_stands_still(engine_path: Path, tmp_path: Path) -> None:
    """It counts as hung after the time that the options say."""
    options = EngineOptions(max_batch_size=4, max_num_tokens=16, rank_timeout_s=2)
    with fake_workers(tmp_path) as workers:
        before = workers.running()
        with Engine(engine_path, options) as engine:
            (worker,) = set(workers.running()) - set(before)
            (handle,) = engine.submit([EngineRequest([5, 9], max_tokens=60, ignore_eos=True)])
            first = handle.get(timeout_s=60)
            os.kill(worker, signal.SIGSTOP)
            check_rank_failed([Answer([first, *handle.events()])], "")


def test_ctrl_c_is_not_for_workers(running: tuple[Engine, int, Workers], continuations: list[Continuation]) -> None:
    """A terminal sends it to a group of processes, and they have one of their own."""
    engine, worker, _ = running
    assert os.getpgid(worker) != os.getpgid(0)
    (answer,) = run(engine, [greedy(continuations[0].prompt)])
    assert answer.tokens == continuations[0].tokens


def test_shutting_down_in_the_middle(running: tuple[Engine, int, Workers]) -> None:
    engine, worker, workers = running
    handles = engine.submit([EngineRequest([5 + i, 9], max_tokens=60, ignore_eos=True) for i in range(3)])
    handles[0].get(timeout_s=60)
    engine.shutdown()
    ends = [list(handle.events())[-1] for handle in handles]
    assert {Answer([end]).end.reason for end in ends} == {FinishReason.CANCELLED}
    wait_until(lambda: worker not in workers.running(), "the worker goes on")


def test_two_engines_at_once(engine_path: Path, tmp_path: Path, continuations: list[Continuation]) -> None:
    options = EngineOptions(kv_cache_bytes=20 * _page_bytes(engine_path))
    with fake_workers(tmp_path), Engine(engine_path, options) as first, Engine(engine_path, options) as second:
        for each in continuations[:2]:
            for engine in (first, second):
                assert run(engine, [greedy(each.prompt)])[0].tokens == each.tokens


@pytest.mark.parametrize("option", [{"num_threads": 2}, {"kernel_level": "avx2"}])
def test_options_of_the_other_backend(option: dict[str, Any], engine_path: Path, tmp_path: Path) -> None:
    with fake_workers(tmp_path):
        error = refused(engine_path, EngineOptions(**option))
    assert error.code == ErrorCode.INVALID_ARGUMENT
    assert "num_threads and kernel_level are of ONNX Runtime on the CPU" in str(error)
