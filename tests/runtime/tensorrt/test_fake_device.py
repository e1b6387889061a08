"""The fakes themselves: what is enqueued runs when somebody waits, misuse is seen, and a step computes the model."""

import ctypes
import enum
import importlib
import inspect
import io
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from precast.checkpoints.checkpoint import open_checkpoint
from precast.checkpoints.engine_dir import check_files, read_manifest, verify_files
from precast.checkpoints.engine_manifest import TensorRtRequirements
from precast.cli import main
from tests.builder.tensorrt.lowered_runner import LoweredRunner
from tests.builder.tensorrt.worlds import lowered, tensorrt_plan
from tests.runtime.tensorrt.fake_engine import PYTHON_PATH, SCRATCH_BYTES, build_fake_engine, put_fakes_in_place
from tests.runtime.tensorrt.fake_packages import tensorrt_rtx as trt
from tests.runtime.tensorrt.fake_packages.cuda.bindings import driver
from tests.runtime.tensorrt.plain_session import CallError, PlainSession, make_current, ok, register_attention

TinyLlama = Callable[..., Path]
Array = NDArray[Any]

TOKENS = [0, 17, 133, 42, 201, 5, 260, 260, 99, 3, 77, 301, 8, 15, 22, 31, 4, 9]
"""More than a block."""
NON_BLOCKING = driver.CUstream_flags.CU_STREAM_NON_BLOCKING
GLOBAL = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL
RELAXED = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED


@pytest.fixture(autouse=True)
def device() -> Iterator[None]:
    """A new machine, whose device 0 is current."""
    driver.reset()
    trt.reset_plugins()
    make_current(driver)
    yield
    driver.reset()
    trt.reset_plugins()


class Pinned:
    """Pinned memory, and an array in it."""

    def __init__(self, size_bytes: int, value: int = 0) -> None:
        self.address = ok(driver.cuMemHostAlloc(size_bytes, driver.CU_MEMHOSTALLOC_PORTABLE))
        self.array = np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(self.address))
        self.array[:] = value


def new_stream() -> Any:
    return ok(driver.cuStreamCreate(NON_BLOCKING))


def new_event() -> Any:
    return ok(driver.cuEventCreate(driver.CUevent_flags.CU_EVENT_DISABLE_TIMING))


def on_device(size_bytes: int = 16) -> int:
    return int(ok(driver.cuMemAlloc(size_bytes)))


def misused(answer: tuple[Any, ...], text: str) -> None:
    """The call was refused, and the last misuse says this."""
    assert answer[0] == driver.CUresult.CUDA_ERROR_INVALID_VALUE
    assert set(answer[1:]) <= {None}
    assert text in driver.misuse[-1]


class TestStreams:
    def test_what_is_enqueued_reads_when_somebody_waits(self) -> None:
        stream, source, target, memory = new_stream(), Pinned(16, 1), Pinned(16, 9), on_device()
        ok(driver.cuMemcpyHtoDAsync(memory, source.address, 16, stream))
        ok(driver.cuMemcpyDtoHAsync(target.address, memory, 16, stream))
        source.array[:] = 2  # too early
        assert set(target.array) == {9}
        ok(driver.cuStreamSynchronize(stream))
        assert set(target.array) == {2}
        assert driver.misuse == []

    def test_an_event_is_waited_for_and_nothing_behind_it(self) -> None:
        stream, target, memory, event = new_stream(), Pinned(16), on_device(), new_event()
        ok(driver.cuMemsetD8Async(memory, 1, 16, stream))
        ok(driver.cuMemcpyDtoHAsync(target.address, memory, 16, stream))
        ok(driver.cuEventRecord(event, stream))
        ok(driver.cuMemsetD8Async(memory, 2, 16, stream))
        ok(driver.cuMemcpyDtoHAsync(target.address, memory, 16, stream))
        ok(driver.cuEventSynchronize(event))
        assert set(target.array) == {1}
        ok(driver.cuStreamSynchronize(stream))
        assert set(target.array) == {2}

    def test_queries_say_not_ready_and_then_the_work_is_done(self) -> None:
        driver.settings.queries_until_done = 2
        stream, target, memory, event = new_stream(), Pinned(16), on_device(), new_event()
        assert driver.cuEventQuery(event) == (driver.CUresult.CUDA_SUCCESS,)  # never recorded
        ok(driver.cuMemsetD8Async(memory, 7, 16, stream))
        ok(driver.cuMemcpyDtoHAsync(target.address, memory, 16, stream))
        ok(driver.cuEventRecord(event, stream))
        assert [int(driver.cuEventQuery(event)[0]) for _ in range(2)] == [600, 600]
        assert set(target.array) == {0}
        assert driver.cuEventQuery(event) == (driver.CUresult.CUDA_SUCCESS,)
        assert set(target.array) == {7}
        ok(driver.cuEventRecord(event, stream))  # queries count from its latest recording
        assert int(driver.cuEventQuery(event)[0]) == 600

    def test_a_stream_waits_for_another(self) -> None:
        first, second, event = new_stream(), new_stream(), new_event()
        source, target, memory = Pinned(16, 3), Pinned(16), on_device()
        ok(driver.cuMemcpyHtoDAsync(memory, source.address, 16, first))
        ok(driver.cuEventRecord(event, first))
        ok(driver.cuStreamWaitEvent(second, event, 0))
        ok(driver.cuMemcpyDtoHAsync(target.address, memory, 16, second))
        ok(driver.cuStreamSynchronize(second))
        assert set(target.array) == {3}

    def test_without_that_they_race(self) -> None:
        first, second, target, memory, event = new_stream(), new_stream(), Pinned(16), on_device(), new_event()
        ok(driver.cuEventRecord(event, first))
        ok(driver.cuMemsetD8Async(memory, 3, 16, first))
        ok(driver.cuStreamWaitEvent(second, event, 0))  # which is recorded too early
        answer = driver.cuMemcpyDtoHAsync(target.address, memory, 16, second)
        misused(answer, "a copy to the host races with a pending memset on another stream")

    def test_new_memory_holds_nothing_that_makes_sense(self) -> None:
        stream, target, memory = new_stream(), Pinned(16), on_device()
        ok(driver.cuMemcpyDtoHAsync(target.address, memory, 16, stream))
        ok(driver.cuStreamSynchronize(stream))
        assert set(target.array) == {255}

    def test_a_synchronous_copy_waits_for_blocking_streams_only(self) -> None:
        blocking, other = ok(driver.cuStreamCreate(0)), new_stream()
        memory, result = on_device(), np.zeros(16, np.uint8)
        ok(driver.cuMemsetD8Async(memory, 5, 16, blocking))
        ok(driver.cuMemcpyDtoH(result.ctypes.data, memory, 16))
        assert set(result) == {5}
        ok(driver.cuMemsetD8Async(memory, 6, 16, other))
        misused(driver.cuMemcpyDtoH(result.ctypes.data, memory, 16), "it races with a pending memset")


class TestGraphs:
    def test_a_graph_does_it_again_with_the_bytes_of_then(self) -> None:
        stream, source, target, memory = new_stream(), Pinned(16, 1), Pinned(16), on_device()
        ok(driver.cuStreamBeginCapture(stream, RELAXED))
        ok(driver.cuMemcpyHtoDAsync(memory, source.address, 16, stream))
        ok(driver.cuMemcpyDtoHAsync(target.address, memory, 16, stream))
        graph = ok(driver.cuStreamEndCapture(stream))
        executable = ok(driver.cuGraphInstantiate(graph, 0))
        ok(driver.cuGraphDestroy(graph))
        ok(driver.cuStreamSynchronize(stream))
        assert set(target.array) == {0}  # capturing does nothing
        for value in (4, 5):
            source.array[:] = value
            ok(driver.cuGraphLaunch(executable, stream))
            assert set(target.array) != {value}
            ok(driver.cuStreamSynchronize(stream))
            assert set(target.array) == {value}
        assert driver.misuse == []

    def test_memory_that_is_freed_since(self) -> None:
        stream, memory = new_stream(), on_device()
        ok(driver.cuStreamBeginCapture(stream, RELAXED))
        ok(driver.cuMemsetD8Async(memory, 1, 16, stream))
        executable = ok(driver.cuGraphInstantiate(ok(driver.cuStreamEndCapture(stream)), 0))
        ok(driver.cuMemFree(memory))
        misused(driver.cuGraphLaunch(executable, stream), "use after free of 16 bytes of device 0 memory")

    @pytest.mark.parametrize("mode", [GLOBAL, RELAXED])
    @pytest.mark.parametrize("call", ["allocate", "synchronize", "copy", "host"])
    def test_calls_that_break_a_capture(self, mode: Any, call: str) -> None:
        stream, memory, host = new_stream(), on_device(), np.zeros(16, np.uint8)
        ok(driver.cuStreamBeginCapture(stream, mode))
        calls: dict[str, Callable[[], tuple[Any, ...]]] = {
            "allocate": lambda: driver.cuMemAlloc(16),
            "synchronize": lambda: driver.cuStreamSynchronize(stream),
            "copy": lambda: driver.cuMemcpyHtoD(memory, host.ctypes.data, 16),
            "host": lambda: driver.cuMemHostAlloc(16, 0),
        }
        misused(calls[call](), f"while a stream captures ({mode.name})")
        assert driver.cuStreamEndCapture(stream) == (driver.CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, None)

    def test_another_thread_may_go_on_unless_the_capture_is_global(self) -> None:
        stream, answers = new_stream(), []
        context = ok(driver.cuCtxGetCurrent())

        def allocate() -> None:
            ok(driver.cuCtxSetCurrent(context))
            answers.append(int(driver.cuMemAlloc(16)[0]))

        for mode in (driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL, GLOBAL):
            ok(driver.cuStreamBeginCapture(stream, mode))
            thread = threading.Thread(target=allocate)
            thread.start()
            thread.join()
            driver.cuStreamEndCapture(stream)
        assert answers == [0, 1]


class TestMisuse:
    def test_memory(self) -> None:
        stream, memory, pinned = new_stream(), on_device(16), Pinned(16)
        pageable = np.zeros(16, np.uint8)
        copy = driver.cuMemcpyHtoDAsync
        misused(copy(memory, pageable.ctypes.data, 16, stream), "needs pinned memory")
        misused(copy(memory, pinned.address, 17, stream), "17 bytes")
        misused(copy(memory + 8, pinned.address, 16, stream), "reach beyond 16 bytes of device 0 memory")
        misused(copy(pinned.address, pinned.address, 16, stream), "pinned memory")
        misused(driver.cuMemFreeHost(memory), "is freed as memory of the host")
        misused(driver.cuMemFree(memory + 8), "no memory starts at")
        ok(driver.cuMemFree(memory))
        misused(driver.cuMemFree(memory), "is freed already")
        misused(copy(memory, pinned.address, 16, stream), "use after free")

    def test_freeing_what_pending_work_uses(self) -> None:
        stream, memory, pinned = new_stream(), on_device(), Pinned(16)
        ok(driver.cuMemcpyHtoDAsync(memory, pinned.address, 16, stream))
        misused(driver.cuMemFree(memory), "is freed while a pending copy to the device uses it")
        misused(driver.cuMemFreeHost(pinned.address), "is freed while a pending copy to the device uses it")
        ok(driver.cuStreamDestroy(stream))  # which waits for nothing
        misused(driver.cuMemFree(memory), "is freed while a pending copy to the device uses it")
        ok(driver.cuCtxSynchronize())
        ok(driver.cuMemFree(memory))
        ok(driver.cuMemFreeHost(pinned.address))

    def test_handles(self) -> None:
        stream, event, memory = new_stream(), new_event(), on_device()
        misused(driver.cuMemsetD8Async(memory, 0, 16, event), "is no handle of a stream")
        ok(driver.cuStreamDestroy(stream))
        misused(driver.cuMemsetD8Async(memory, 0, 16, stream), "it was of a stream that is destroyed")
        misused(driver.cuStreamEndCapture(new_stream()), "the stream does not capture")

    def test_contexts(self) -> None:
        driver.reset(num_devices=2)
        make_current(driver, 0)
        stream, memory = new_stream(), on_device()
        make_current(driver, 1)
        misused(driver.cuStreamSynchronize(stream), "a stream of device 0 is used in the context of device 1")
        misused(driver.cuMemsetD8Async(memory, 0, 16, new_stream()), "device 0 memory")
        ok(driver.cuCtxSetCurrent(None))
        misused(driver.cuMemAlloc(16), "this thread has no current context")

    def test_a_context_that_ends_takes_everything_with_it(self) -> None:
        new_stream(), new_event(), on_device(), Pinned(16)
        assert len(driver.leaks()) == 5
        ok(driver.cuDevicePrimaryCtxRelease(0))
        assert driver.leaks() == []


class TestSettings:
    def test_room_ends(self) -> None:
        driver.reset(total_bytes=1 << 20, free_bytes=1000)
        make_current(driver)
        assert driver.cuMemGetInfo() == (driver.CUresult.CUDA_SUCCESS, 1000, 1 << 20)
        memory = on_device(900)
        assert driver.cuMemAlloc(101) == (driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY, None)
        ok(driver.cuMemFree(memory))
        on_device(1000)

    def test_what_a_device_is(self) -> None:
        driver.reset(name="Some GPU", capability=[12, 0])
        ok(driver.cuInit(0))
        assert driver.cuDeviceGetName(12, 0) == (driver.CUresult.CUDA_SUCCESS, b"Some GPU\0   ")
        attribute = driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
        assert driver.cuDeviceGetAttribute(attribute, 0) == (driver.CUresult.CUDA_SUCCESS, 12)

    def test_no_device(self) -> None:
        driver.reset(num_devices=0)
        assert driver.cuInit(0) == (driver.CUresult.CUDA_ERROR_NO_DEVICE,)

    def test_a_call_fails_once(self) -> None:
        driver.settings.update({"fail": {"call": "cuMemAlloc", "number": 2, "status": 2}})
        assert [int(driver.cuMemAlloc(16)[0]) for _ in range(3)] == [0, 2, 0]

    def test_a_device_that_failed_stays_so(self) -> None:
        stream = new_stream()
        driver.settings.update({"fail": [{"call": "cuStreamSynchronize", "status": 719}]})
        assert int(driver.cuStreamSynchronize(stream)[0]) == 719
        assert int(driver.cuMemAlloc(16)[0]) == 719
        assert driver.cuGetErrorName(719) == (driver.CUresult.CUDA_SUCCESS, b"CUDA_ERROR_LAUNCH_FAILED")
        assert driver.misuse == []

    def test_unknown_settings_are_refused(self) -> None:
        with pytest.raises(ValueError, match="no setting colour"):
            driver.settings.update({"colour": "green"})


# ------------------------------------------------------------------------------------------------------------ networks


@pytest.fixture(scope="module")
def engines(tiny_llama: TinyLlama, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`engines("separate")`: an engine of the float16 model, whose roundings are small."""
    built: dict[str, Path] = {}

    def engine(weights: str) -> Path:
        if weights not in built:
            built[weights] = tmp_path_factory.mktemp(weights) / "engine"
            build_fake_engine(tiny_llama("float16"), built[weights], weights=weights)
        return built[weights]

    return engine


@pytest.fixture(scope="module")
def expected(tiny_llama: TinyLlama) -> Array:
    """The logits of TOKENS."""
    with open_checkpoint(tiny_llama("float16")) as checkpoint:
        return LoweredRunner(lowered(checkpoint.config, tensorrt_plan("float16")), checkpoint)(TOKENS)


@pytest.fixture
def session(engines: Callable[[str], Path]) -> PlainSession:
    return PlainSession(driver, trt, engines("inside") / "rank0")


def error(got: Array, wanted: Array) -> float:
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("weights", ["inside", "separate"])
def test_two_steps_compute_the_model(weights: str, engines: Callable[[str], Path], expected: Array) -> None:
    session = PlainSession(driver, trt, engines(weights) / "rank0")
    assert bool(session.weights) == (weights == "separate")
    for start, end, num_rows, profile in ((0, 15, 4, 1), (15, 17, 2, 1), (17, 18, 1, 0)):
        logits = session.step(TOKENS[start:end], start, num_rows, profile)
        assert error(logits, expected[end - num_rows : end]) < 0.002
        if "tokens" in session.names:
            assert session.download("tokens").tolist() == expected[end - num_rows : end].argmax(axis=1).tolist()
    for name in session.pools:  # what they hold is what the last step was computed from
        ok(driver.cuMemsetD8Async(session.addresses[name], 0, 1024, session.stream))
    assert error(session.step(TOKENS[17:], 17, profile=0), expected[-1:]) > 0.05
    assert driver.misuse == []


def test_a_captured_step_is_replayed_with_new_inputs(session: PlainSession, expected: Array) -> None:
    session.step(TOKENS[:16], 0)
    first = session.describe(TOKENS[16:17], 16, profile=0)
    ok(driver.cuStreamBeginCapture(session.stream, RELAXED))
    assert not session.execute()
    ok(driver.cuStreamEndCapture(session.stream))
    assert "enqueue one with these before one is captured" in driver.misuse.pop()
    session.upload(first)
    assert session.execute()
    ok(driver.cuStreamSynchronize(session.stream))
    assert session.context.is_stream_capturable(int(session.stream))
    ok(driver.cuStreamBeginCapture(session.stream, RELAXED))
    assert session.execute()
    executable = ok(driver.cuGraphInstantiate(ok(driver.cuStreamEndCapture(session.stream)), 0))
    second = {**first, "token_ids": np.array(TOKENS[17:], np.int32), "context_lengths": np.array([18], np.int32)}
    for inputs, row in ((first, 16), (second, 17)):
        session.upload(inputs)
        ok(driver.cuGraphLaunch(executable, session.stream))
        assert error(session.download("logits"), expected[row : row + 1]) < 0.002
    assert driver.misuse == []


def test_a_step_reads_its_inputs_when_it_runs(session: PlainSession) -> None:
    inputs = session.describe(TOKENS[:4], 0)
    session.upload(inputs)
    assert session.execute()
    pinned = Pinned(16)
    pinned.array.view(np.int32)[:] = TOKENS[4:8]
    ok(driver.cuMemcpyHtoDAsync(session.addresses["token_ids"], pinned.address, 16, session.stream))
    before = session.download("logits").copy()
    assert session.execute()
    assert error(session.download("logits"), before) > 0.05


def test_a_step_that_cannot_be_computed_is_the_end_of_the_device(session: PlainSession) -> None:
    session.upload(session.describe([100_000], 0))
    assert session.execute()
    assert int(driver.cuStreamSynchronize(session.stream)[0]) == 719
    assert int(driver.cuStreamSynchronize(session.stream)[0]) == 719
    assert not session.execute()
    assert "the device failed" in driver.misuse[0]


class TestWhatAContextRefuses:
    def refused(self, session: PlainSession, text: str) -> None:
        assert not session.execute()
        assert text in driver.misuse[-1]

    def test_shapes(self, session: PlainSession) -> None:
        self.refused(session, "the shape of token_ids, query_starts")
        session.describe(TOKENS[:4], 0)
        assert not session.context.set_input_shape("token_ids", (33,))  # the profile ends at 32
        assert not session.context.set_input_shape("token_ids", (4, 1))
        assert session.context.set_input_shape("token_ids", (4,))
        assert session.context.infer_shapes() == []
        assert session.context.get_tensor_shape("logits") == (1, 320)
        assert session.context.set_optimization_profile_async(0, session.stream)  # which forgets them
        assert "token_ids" in session.context.infer_shapes()
        assert driver.misuse == [driver.misuse[0]]

    def test_a_size_that_has_two_values(self, session: PlainSession) -> None:
        session.describe(TOKENS[:4], 0)
        assert session.context.set_input_shape("context_lengths", (2,))
        self.refused(session, "num_sequences is 2 in context_lengths and 1 in block_tables.0")

    def test_addresses(self, session: PlainSession) -> None:
        session.describe(TOKENS[:4], 0)
        session.context.set_tensor_address("kv.1.out", session.addresses["kv.0"])
        self.refused(session, "kv.1.out is at")
        session.context.set_tensor_address("kv.1.out", session.addresses["kv.1"])
        session.context.set_tensor_address("logits", session.addresses["token_ids"])
        self.refused(session, "reach beyond")
        session.context.set_tensor_address("logits", session.addresses["kv.0"])
        self.refused(session, "overlap")
        session.context.set_tensor_address("logits", 0)
        self.refused(session, "the address of logits is not set")

    def test_device_memory(self, session: PlainSession) -> None:
        session.describe(TOKENS[:4], 0)
        small = SCRATCH_BYTES[0]
        session.context.set_device_memory(session.allocate(small), small)
        self.refused(session, f"the device memory has {small} bytes, the profile needs {SCRATCH_BYTES[1]}")
        session.describe(TOKENS[:1], 0, profile=0)
        session.upload(session.describe(TOKENS[:1], 0, profile=0))
        assert session.execute()

    def test_calls_that_are_told_to_fail(self, session: PlainSession) -> None:
        session.describe(TOKENS[:4], 0)
        driver.settings.update({"fail": {"call": "execute_async_v3", "number": 1}})
        assert not session.execute()
        assert session.execute()
        assert driver.misuse == []


class TestPlans:
    def deserialize(self, data: bytes) -> tuple[Any, list[str]]:
        said: list[str] = []

        class Logger(trt.ILogger):
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, msg: str) -> None:
                assert severity == trt.ILogger.ERROR
                said.append(msg)

        return trt.Runtime(Logger()).deserialize_cuda_engine(data), said

    def test_what_is_no_plan(self) -> None:
        engine, said = self.deserialize(b"something else")
        assert engine is None
        assert "Serialization assertion failed" in said[0]

    def test_another_device(self, tiny_llama: TinyLlama, tmp_path: Path) -> None:
        register_attention(trt)
        build_fake_engine(tiny_llama("gqa"), tmp_path / "engine", target=("sm86",))
        plan = (tmp_path / "engine" / "rank0" / "model.plan").read_bytes()
        assert "the plan is for sm86, the device's compute capability is 8.9" in self.deserialize(plan)[1][0]
        driver.settings.capability = (8, 6)
        assert self.deserialize(plan)[0] is not None

    def test_a_plugin_that_nobody_registered(
        self, engines: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        register_attention(trt)
        registry = trt.get_plugin_registry()
        (creator,) = [each for each in registry.all_creators if each.name == "PagedAttention"]
        assert registry.deregister_creator(creator)
        _, said = self.deserialize((engines("inside") / "rank0" / "model.plan").read_bytes())
        assert "Cannot find plugin: PagedAttention, version: 1, namespace: precast" in said[0]

    def test_an_engine_takes_memory_and_does_not_outlive_its_context(self, engines: Callable[[str], Path]) -> None:
        register_attention(trt)
        plan = (engines("inside") / "rank0" / "model.plan").read_bytes()
        free = driver.cuMemGetInfo()[1]
        engine, _ = self.deserialize(plan)
        taken = free - driver.cuMemGetInfo()[1]
        assert 0.5 < taken / len(plan) < 1
        del engine
        assert driver.cuMemGetInfo()[1] == free
        driver.reset(free_bytes=taken - 1)
        make_current(driver)
        assert "CUDA_ERROR_OUT_OF_MEMORY" in self.deserialize(plan)[1][0]
        driver.reset()
        make_current(driver)
        engine, _ = self.deserialize(plan)
        ok(driver.cuDevicePrimaryCtxRelease(0))
        assert engine.num_io_tensors > 10  # it still lives
        assert driver.misuse == ["the context of device 0 ends before its ICudaEngine"]

    def test_a_runtime_cache_is_of_its_device(self, session: PlainSession) -> None:
        session.step(TOKENS[:4], 0)
        blob = session.cache.serialize()
        assert blob.nbytes > 10
        fresh = session.engine.create_runtime_config().create_runtime_cache()
        assert not fresh.deserialize(b"nothing")
        assert fresh.deserialize(blob)
        assert fresh.shapes == session.cache.shapes != set()
        driver.settings.capability = (8, 0)
        assert not fresh.deserialize(blob)

    def test_the_engine_directory_is_a_whole_one(self, engines: Callable[[str], Path]) -> None:
        for weights in ("inside", "separate"):
            manifest = read_manifest(engines(weights))
            check_files(engines(weights), manifest)
            verify_files(engines(weights), manifest)
            needs = manifest.backend_requirements
            assert isinstance(needs, TensorRtRequirements)
            assert (needs.library, needs.library_version) == ("tensorrt_rtx", trt.__version__)
            assert (manifest.ranks[0].weights is None) == (weights == "inside")
            output = io.StringIO()
            with redirect_stdout(output):
                assert main(["inspect", str(engines(weights))]) == 0
            assert "tensorrt: tensorrt_rtx 1.7" in output.getvalue()


# ----------------------------------------------------------------------------------------------------- other processes


def test_this_process_can_find_the_fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    put_fakes_in_place(monkeypatch)
    assert importlib.import_module("tensorrt_rtx") is trt
    assert importlib.import_module("cuda.bindings.driver") is driver
    assert importlib.import_module("cuda.bindings").driver is driver


WORKER = """
import sys
from pathlib import Path
import cuda
import tensorrt_rtx
from cuda.bindings import driver
from tests.runtime.tensorrt.plain_session import PlainSession, make_current
make_current(driver)
logits = PlainSession(driver, tensorrt_rtx, Path(sys.argv[1])).step([0, 17, 133], 0)
driver.cuMemFree(16)
print(cuda.__file__, int(logits.argmax()), driver.settings.queries_until_done)
"""


def test_a_worker_process_finds_the_fakes(engines: Callable[[str], Path], expected: Array, tmp_path: Path) -> None:
    misuse_file = tmp_path / "misuse"
    settings = {"queries_until_done": 7, "misuse_file": str(misuse_file)}
    result = subprocess.run(
        [sys.executable, "-c", WORKER, str(engines("inside") / "rank0")],
        env={"PYTHONPATH": PYTHON_PATH, "PRECAST_FAKE_DEVICE": json.dumps(settings)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    file, token, queries = result.stdout.split()
    assert file == str(Path(driver.__file__).parents[1] / "__init__.py")
    assert (int(token), queries) == (int(expected[2].argmax()), "7")
    assert misuse_file.read_text() == "cuMemFree: no memory starts at 0x10\n"


# ----------------------------------------------------------------------------------------------------------- the models


def test_names_and_values_are_those_of_cuda_bindings() -> None:
    real = pytest.importorskip("cuda.bindings.driver")
    for name in sorted({*driver.__all__} - {*driver.FOR_TESTS}):
        ours, theirs = getattr(driver, name), getattr(real, name)
        if isinstance(ours, enum.EnumMeta):
            values = {key: int(value) for key, value in theirs.__members__.items()}
            assert _values(ours).items() <= values.items(), name
        elif inspect.isfunction(ours):
            assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters), name
        elif isinstance(ours, int):
            assert ours == theirs


def test_handles_are_as_awkward_as_those_of_cuda_bindings() -> None:
    module = _import_or_none("cuda.bindings.driver")
    for each in (driver, *([module] if module is not None else [])):
        pointer, stream = each.CUdeviceptr(4096), each.CUstream(16)
        assert (int(pointer), int(stream)) == (4096, 16)
        assert pointer != 4096
        assert stream not in (16, each.CUevent(16))
        assert stream == each.CUstream(16)
        with pytest.raises(TypeError):
            pointer + 1


def test_names_and_values_are_those_of_tensorrt_rtx() -> None:
    real = pytest.importorskip("tensorrt_rtx")
    assert real.__version__ == trt.__version__, "the fake is of the version that pyproject.toml asks for"
    for name in sorted({*trt.__all__} - {*trt.FOR_TESTS}):
        ours, theirs = getattr(trt, name), getattr(real, name)
        if isinstance(ours, enum.EnumMeta):
            known = {key: int(value) for key, value in theirs.__members__.items()}
            assert _values(ours).items() <= known.items(), name
        elif isinstance(ours, type) and not issubclass(ours, list | bytes):
            assert {entry for entry in vars(ours) if not entry.startswith("_")} <= {*dir(theirs)}, name
        elif isinstance(ours, enum.Enum):
            assert (ours.name, int(ours.value)) == (theirs.name, int(theirs))


def test_shapes_are_as_awkward_as_those_of_tensorrt_rtx() -> None:
    module = _import_or_none("tensorrt_rtx")
    for each in (trt, *([module] if module is not None else [])):
        dims = each.Dims((1, 2, -1))
        assert (dims == (1, 2, -1), list(dims), tuple(dims)[2], len(dims)) == (True, [1, 2, -1], -1, 3)
        assert not isinstance(dims, tuple)
        with pytest.raises(TypeError):
            _ = dims == each.Dims((1, 2, -1))
        with pytest.raises(TypeError):
            hash(dims)


def _values(enumeration: Any) -> dict[str, int]:
    return {name: int(member) for name, member in enumeration.__members__.items()}


def _import_or_none(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return None


def test_call_error_names_the_status() -> None:
    with pytest.raises(CallError, match="CUDA_ERROR_INVALID_VALUE"):
        ok(driver.cuMemAlloc(0))
