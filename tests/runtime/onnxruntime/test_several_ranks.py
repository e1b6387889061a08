"""Engines of several ranks for ONNX Runtime on GPUs: a process for each, which meet in files in place of NCCL."""

import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from precast import LLM, SamplingParams
from precast.plugins.device.driver import DeviceError
from precast.plugins.device.op_call import OpCall
from precast.plugins.onnxruntime.kinds import KINDS
from precast.plugins.onnxruntime.op_kind import Tools
from precast.runtime import Engine, EngineLoadError, EngineOptions
from precast.runtime.device.open_engine import _Opening
from precast.runtime.errors import ErrorCode
from tests.runtime.onnxruntime.cpu_kinds import Meetings, at
from tests.runtime.onnxruntime.cpu_provider import NUM_REHEARSED, RUN, LazyNetwork
from tests.runtime.tensorrt import fake_nccl
from tests.runtime.tensorrt import test_several_ranks as of_tensorrt
from tests.runtime.tensorrt.conftest import Continuation
from tests.runtime.tensorrt.fake_cuda.errors import Unfinished
from tests.runtime.tensorrt.fake_packages.cuda.bindings import driver
from tests.runtime.tensorrt.test_several_ranks import (
    ENDLESS,
    LAUNCH_FAILED,
    OUT_OF_MEMORY,
    check_ended,
    check_failed,
    processes_of,
    ranked,
    ranked_workers,
    refused,
    test_a_rank_that_did_not_do_its_part,
    test_a_step_in_flight_is_not_waited_for,
    test_shutting_down_in_the_middle,
    test_stages_with_kv_groups_of_their_own,
    test_without_nccl,
    tokens_of,
)
from tests.runtime.tensorrt.test_several_ranks import options as options
from tests.runtime.tensorrt.workers import run
from tests.runtime.tensorrt.worlds import FakeEngine, open_world

pytestmark = pytest.mark.usefixtures("cpu_workers", "cpu_provider")

__all__ = [
    "test_a_rank_that_did_not_do_its_part",
    "test_a_step_in_flight_is_not_waited_for",
    "test_shutting_down_in_the_middle",
    "test_stages_with_kv_groups_of_their_own",
    "test_without_nccl",
]


@pytest.fixture(params=[(2, 1), (2, 2)], ids=str)
def llm(request: pytest.FixtureRequest, fake_engine: FakeEngine, tmp_path: Path) -> Iterator[LLM]:
    """Four sequences at once, prompts in chunks of what is left of 6 tokens."""
    path = ranked(fake_engine, request.param)
    with ranked_workers(tmp_path) as workers, LLM(path, max_batch_size=4, max_num_tokens=6) as opened:
        tensor_parallel_size, pipeline_parallel_size = request.param
        assert len(processes_of(workers)) == tensor_parallel_size * pipeline_parallel_size
        yield opened


def test_ranks_give_what_transformers_computes(llm: LLM, continuations: list[Continuation]) -> None:
    """The second time prefixes are there."""
    params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    for each in (continuations, continuations[::-1]):
        outputs = llm.generate([list(one.prompt) for one in each], params)
        assert tokens_of(outputs) == [one.tokens for one in each]


def test_a_rank_that_dies_while_another_waits_for_it(
    fake_engine: FakeEngine, tmp_path: Path, options: EngineOptions
) -> None:
    of_tensorrt.test_a_rank_that_dies_while_another_waits_for_it((2, 1), 1, fake_engine, tmp_path, options)


# -------------------------------------------------------------------------------------------------------------- loading


def test_a_graph_of_rank_1_that_is_damaged(fake_engine: FakeEngine, tmp_path: Path) -> None:
    """The others have joined, and wait for nobody: not in the step that they run while they load, either."""
    engine = tmp_path / "engine"
    shutil.copytree(ranked(fake_engine, (2, 1)), engine)
    graph = engine / "rank1" / "model.onnx"
    graph.chmod(0o644)
    with graph.open("r+b") as file:
        file.write(b"something")
    begin = time.monotonic()
    with ranked_workers(tmp_path):
        error = refused(engine)
    assert type(error) is EngineLoadError
    assert str(error).startswith("rank 1: ONNX Runtime ")
    assert f" refuses Load model from {graph} failed:" in str(error)
    assert time.monotonic() - begin < fake_nccl.TIMEOUT_S


@pytest.mark.parametrize(
    ("call", "number", "code", "said"),
    [
        ("cuMemAlloc", 4, ErrorCode.RESOURCE_EXHAUSTED, "Fake GPU: "),  # while it loads weights
        (RUN, 1, ErrorCode.INTERNAL, "DeviceError: ONNX Runtime cannot run "),  # where all meet the first time
    ],
)
def test_a_rank_that_fails_while_it_loads(
    call: str, number: int, code: ErrorCode, said: str, fake_engine: FakeEngine, tmp_path: Path
) -> None:
    failure = {"call": call, "number": number, "status": OUT_OF_MEMORY, "device": 1}
    begin = time.monotonic()
    with ranked_workers(tmp_path, fail=failure):
        error = refused(ranked(fake_engine, (2, 1)))
    assert error.code == code
    assert str(error).startswith(f"rank 1: {said}")
    assert time.monotonic() - begin < fake_nccl.TIMEOUT_S


def test_no_rank_meets_others_before_all_have_loaded(fake_engine: FakeEngine) -> None:
    """A sum waits for a rank for a limited time, which one that loads from a slower disk may need."""
    calls: list[list[str]] = []

    def exchange(mine: bytes) -> list[bytes]:
        calls.append([name for name, *_ in driver.calls])
        return [mine]

    with open_world(fake_engine("float16"), exchange=exchange):
        assert [name for name, *_ in driver.calls].count(RUN) == NUM_REHEARSED
    (before,) = calls
    assert before.count("cuMemcpyHtoD") > 4  # weights
    assert RUN not in before


# ------------------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("sizes", "call", "number", "said"),
    [((2, 1), RUN, NUM_REHEARSED + 2, "ONNX Runtime cannot run "), ((1, 2), "cuMemcpyHtoDAsync", 4, "launch failed")],
)
def test_a_device_of_rank_1_that_fails(
    sizes: tuple[int, int],
    call: str,
    number: int,
    said: str,
    fake_engine: FakeEngine,
    tmp_path: Path,
    options: EngineOptions,
) -> None:
    failure = {"call": call, "number": number, "status": LAUNCH_FAILED, "device": 1}
    with (
        ranked_workers(tmp_path, fail=failure) as workers,
        Engine(ranked(fake_engine, sizes), options) as engine,
    ):
        check_failed(run(engine, ENDLESS), "rank 1: ", said)
        check_ended(workers)


# ---------------------------------------------------------------------------------------------- the session by itself


def test_graphs_go_before_the_group(fake_engine: FakeEngine) -> None:
    """Those of NCCL are used by graphs that captured them."""
    with open_world(fake_engine("float16")) as world:
        group = world.session._group = of_tensorrt.Group()
        world.run(world.step([world.prompt([5], block=0)]))
        start = len(driver.calls)
    names = [call[0] for call in driver.calls]
    (end,) = group.aborted
    assert "cuGraphExecDestroy" in names[start:end]
    assert "cuMemFree" not in names[start:end]


def test_a_rehearsal_that_fails_ends_the_group_before_the_network(
    fake_engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for other ranks would be waited for by who gives memory back."""
    group, closed = of_tensorrt.Group(), list[int]()
    monkeypatch.setattr(_Opening, "_join_ranks", lambda opening: group)
    close = LazyNetwork.close

    def close_and_look(network: LazyNetwork) -> None:
        closed.append(len(group.aborted))
        close(network)

    monkeypatch.setattr(LazyNetwork, "close", close_and_look)
    failure = {"fail": {"call": RUN, "number": 2, "status": LAUNCH_FAILED}}
    with pytest.raises(DeviceError, match="ONNX Runtime cannot run "), open_world(fake_engine("float16"), failure):
        pass
    assert closed == [1]


# --------------------------------------------------------------------------------------------------- the meeting itself


class _TwoMeetings:
    """An op that adds 1 to what it is given, and waits for another rank the second time that it is met for."""

    def __init__(self) -> None:
        self.num_calls = 0

    def run(self, fields: Any, tools: Tools, call: OpCall) -> None:
        self.num_calls += 1
        if self.num_calls == 2:
            raise Unfinished("waits")
        x, y = (at(address, (3,), np.float16) for address in (call.inputs[0], call.outputs[0]))
        y[...] = x + np.float16(1)


def test_a_step_that_begins_again_meets_for_the_rest_only() -> None:
    op, meetings = _TwoMeetings(), Meetings()
    kind = meetings.wrap(replace(KINDS[1], run=op.run, output_shapes=lambda fields, shapes: shapes))
    x, y, z = (np.zeros(3, np.float16) for _ in range(3))
    tools: Any = None

    def step() -> None:
        with meetings.of_a_step():
            for source, target in ((x, y), (y, z)):
                kind.run(None, tools, OpCall([(3,)], [source.ctypes.data], [target.ctypes.data], 0, 0))

    with pytest.raises(Unfinished):
        step()
    y[...] = 7  # memory between nodes is anybody's between two runs
    step()
    assert op.num_calls == 3
    assert (y.tolist(), z.tolist()) == ([1] * 3, [2] * 3)
    step()  # the next one meets for everything
    assert op.num_calls == 5
