"""Engines of several ranks: a process for each, which meet in files in place of NCCL (fake_nccl.py)."""

import os
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from precast import LLM, RequestOutput, SamplingParams
from precast.checkpoints.engine_dir import read_manifest
from precast.checkpoints.engine_kv import kv_page_bytes
from precast.cli import main
from precast.plugins.collectives.device.group import GroupError
from precast.plugins.device.driver import DeviceError
from precast.runtime import (
    Engine,
    EngineLoadError,
    EngineOptions,
    EngineRequest,
    FinishReason,
    NativeError,
    RankFailedError,
)
from precast.runtime.device.session import ABANDONED
from precast.runtime.errors import ErrorCode
from tests.runtime.tensorrt import fake_nccl
from tests.runtime.tensorrt.conftest import Continuation
from tests.runtime.tensorrt.fake_cuda.errors import Unfinished
from tests.runtime.tensorrt.fake_packages.cuda.bindings import driver
from tests.runtime.tensorrt.workers import Answer, Workers, fake_workers, greedy, run, wait_until
from tests.runtime.tensorrt.worlds import FakeEngine, World, open_world

LOGPROB_TOLERANCE = 0.1
SIZES = ((2, 1), (1, 2), (2, 2))
"""Tensor ranks of a stage, and stages."""
LAUNCH_FAILED, OUT_OF_MEMORY = 719, 2


def ranked(fake_engine: FakeEngine, sizes: tuple[int, int], variant: str = "float16") -> Path:
    return fake_engine(variant, tensor_parallel_size=sizes[0], pipeline_parallel_size=sizes[1])


@contextmanager
def ranked_workers(folder: Path, **settings: Any) -> Iterator[Workers]:
    """Workers with four devices each, of which each rank uses one, and a place to meet."""
    meeting_dir = folder / "meetings"
    meeting_dir.mkdir()
    with fake_workers(folder, **{"num_devices": 4, "meeting_dir": str(meeting_dir), **settings}) as workers:
        yield workers


def processes_of(workers: Workers) -> dict[int, int]:
    """The processes of ranks, by rank: the first argument behind the script."""
    processes = {}
    for pid in workers.running():
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"precast.runtime.device.worker" in b"".join(arguments[2:3]):
            processes[int(arguments[3])] = pid
    return processes


# -------------------------------------------------------------------------------------------------------------- running


@pytest.fixture(scope="class", params=SIZES, ids=str)
def llm(
    request: pytest.FixtureRequest, fake_engine: FakeEngine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LLM]:
    """Four sequences at once, prompts in chunks of what is left of 6 tokens."""
    path = ranked(fake_engine, request.param)
    with (
        ranked_workers(tmp_path_factory.mktemp("workers")) as workers,
        LLM(path, max_batch_size=4, max_num_tokens=6) as opened,
    ):
        tensor_parallel_size, pipeline_parallel_size = request.param
        assert len(processes_of(workers)) == tensor_parallel_size * pipeline_parallel_size
        yield opened


SAMPLINGS: list[dict[str, Any]] = [
    {"temperature": 1.0, "top_k": 5},
    {"temperature": 0.8, "top_k": 40, "top_p": 0.9},
    {"temperature": 1.3},
    {"temperature": 0.7, "top_k": 200, "min_p": 0.02},
    {"temperature": 0.0, "repetition_penalty": 1.3},
    {"temperature": 0.0},
]
"""Some with candidates, some with whole rows."""
LOGPROBS = (None, 3, 100)


def sample(llm: LLM, continuations: list[Continuation], num_logprobs: int | None) -> list[RequestOutput]:
    prompts = [list(each.prompt) for each in continuations[: len(SAMPLINGS)]]
    params = [
        SamplingParams(max_tokens=5, seed=index, ignore_eos=True, logprobs=num_logprobs, **sampling)
        for index, sampling in enumerate(SAMPLINGS)
    ]
    return llm.generate(prompts, params)


@pytest.fixture(scope="module")
def samples_of_one_rank(
    fake_engine: FakeEngine, continuations: list[Continuation], tmp_path_factory: pytest.TempPathFactory
) -> dict[int | None, list[RequestOutput]]:
    with fake_workers(tmp_path_factory.mktemp("workers")), LLM(fake_engine("float16"), max_batch_size=4) as llm:
        return {count: sample(llm, continuations, count) for count in LOGPROBS}


def tokens_of(outputs: Sequence[RequestOutput]) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in outputs]


class TestWhatRanksGive:
    def test_many_prompts_at_once_and_in_chunks(self, llm: LLM, continuations: list[Continuation]) -> None:
        """What transformers computes; the second time prefixes are there."""
        params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
        for each in (continuations, continuations, continuations[::-1]):
            outputs = llm.generate([list(one.prompt) for one in each], params)
            assert tokens_of(outputs) == [one.tokens for one in each]
        assert llm.info["device"] == "Fake GPU"

    @pytest.mark.parametrize("num_logprobs", LOGPROBS)
    def test_sampling_and_logprobs_are_those_of_one_rank(
        self,
        num_logprobs: int | None,
        llm: LLM,
        samples_of_one_rank: dict[int | None, list[RequestOutput]],
        continuations: list[Continuation],
    ) -> None:
        """Up to what float16 makes of another order of additions."""
        several, one = sample(llm, continuations, num_logprobs), samples_of_one_rank[num_logprobs]
        assert tokens_of(several) == tokens_of(one)
        for got, expected in zip(several, one, strict=True):
            for first, second in zip(got.outputs[0].logprobs or (), expected.outputs[0].logprobs or (), strict=True):
                assert len(first) >= (num_logprobs or 0)
                shared = [token for token in first if token in second]
                assert len(shared) >= len(first) - 2  # the last place may go to another
                assert all(abs(first[token].logprob - second[token].logprob) < LOGPROB_TOLERANCE for token in shared)
        assert [output.outputs[0].logprobs is None for output in several] == [num_logprobs is None] * len(several)


def test_as_many_steps_in_flight_as_stages(fake_engine: FakeEngine, tmp_path: Path) -> None:
    """Three stages of a layer each compute three steps: more requests than a step takes sequences."""
    prompts = [[(11 * i + 3 * j) % 300 + 2 for j in range(3 + 2 * i)] for i in range(8)]
    requests = [greedy(prompt, 6) for prompt in prompts]
    options = EngineOptions(max_batch_size=4, max_num_tokens=7)
    with fake_workers(tmp_path), Engine(fake_engine("mqa"), options) as engine:
        expected = [answer.tokens for answer in run(engine, requests)]
    with ranked_workers(tmp_path), Engine(ranked(fake_engine, (1, 3), "mqa"), options) as engine:
        assert [answer.tokens for answer in run(engine, requests)] == expected
        assert engine.stats()["num_free_blocks"] == engine.info["num_blocks"]


def test_stages_with_kv_groups_of_their_own(fake_engine: FakeEngine, tmp_path: Path) -> None:
    """The second stage has layers with a window only, and the first also others."""
    path = ranked(fake_engine, (1, 2), "qwen2_window")
    requests = [greedy([5 + i, 9, 200, 17, 88, 41][: 2 + i], 20) for i in range(4)]
    options = EngineOptions(max_batch_size=4, max_num_tokens=7)
    with fake_workers(tmp_path), Engine(fake_engine("qwen2_window"), options) as engine:
        expected = [answer.tokens for answer in run(engine, requests)]
    with ranked_workers(tmp_path), Engine(path, options) as engine:
        assert [answer.tokens for answer in run(engine, requests)] == expected


def test_kv_cache_bytes_are_those_of_all_ranks(fake_engine: FakeEngine, tmp_path: Path) -> None:
    path = ranked(fake_engine, (2, 1))
    page_bytes = sum(kv_page_bytes(rank.kv_caches) for rank in read_manifest(path).ranks)
    with ranked_workers(tmp_path), Engine(path, EngineOptions(kv_cache_bytes=6 * page_bytes + 1)) as engine:
        assert (engine.info["num_blocks"], engine.info["kv_cache_bytes"]) == (6, 6 * page_bytes)


def test_warming_all_ranks(fake_engine: FakeEngine, tmp_path: Path) -> None:
    """They run the same shapes, as ranks must, and each keeps what it has compiled."""
    engine = tmp_path / "engine"
    shutil.copytree(ranked(fake_engine, (1, 2)), engine)
    with ranked_workers(tmp_path):
        assert main(["warm", str(engine)]) == 0
    assert all((engine / f"rank{rank}" / "runtime_cache.bin").exists() for rank in range(2))


# -------------------------------------------------------------------------------------------------------------- loading


def refused(engine: Path, options: EngineOptions | None = None) -> NativeError:
    with pytest.raises(NativeError) as caught:
        Engine(engine, options)
    assert "\n" not in str(caught.value)
    return caught.value


def test_ranks_that_do_not_see_each_others_memory_say_so(fake_engine: FakeEngine, tmp_path: Path) -> None:
    """Once each."""
    log: list[str] = []
    options = EngineOptions(log=lambda level, line: log.append(line))
    with ranked_workers(tmp_path), Engine(ranked(fake_engine, (2, 1)), options):
        pass
    lines = sorted(line for line in log if "see each other's memory" in line)
    assert [line[:6] for line in lines] == ["rank 0", "rank 1"]
    ending = "ranks do not see each other's memory and sum through NCCL: rank 0: cuIpcGetMemHandle: not supported"
    assert all(line.endswith(ending) for line in lines)


def test_too_few_gpus(fake_engine: FakeEngine, tmp_path: Path) -> None:
    with ranked_workers(tmp_path, num_devices=1):
        error = refused(ranked(fake_engine, (2, 1)))
    assert type(error) is EngineLoadError
    assert "the engine has 2 ranks, which need a GPU each, and this process sees 1" in str(error)


def test_without_nccl(fake_engine: FakeEngine, tmp_path: Path) -> None:
    path = ranked(fake_engine, (2, 1))
    with ranked_workers(tmp_path, meeting_dir=""):
        error = refused(path)
    assert type(error) is EngineLoadError
    assert f": {path}: rank 0: ranks on GPUs meet through NCCL, which cannot be loaded: " in str(error)


def test_a_plan_of_rank_1_that_is_damaged(fake_engine: FakeEngine, tmp_path: Path) -> None:
    """The others have joined, and wait for nobody."""
    engine = tmp_path / "engine"
    shutil.copytree(ranked(fake_engine, (2, 2)), engine)
    plan = engine / "rank1" / "model.plan"
    plan.chmod(0o644)
    with plan.open("r+b") as file:
        file.write(b"something")
    with ranked_workers(tmp_path):
        error = refused(engine)
    assert type(error) is EngineLoadError
    assert str(error).startswith(f"rank 1: {plan}: TensorRT refuses the plan: ")


@pytest.mark.parametrize(
    ("call", "number", "code", "said"),
    [
        ("cuStreamCreate", 1, ErrorCode.INTERNAL, "DeviceError: cuStreamCreate: out of memory"),  # before they meet
        ("cuMemAlloc", 4, ErrorCode.RESOURCE_EXHAUSTED, "Fake GPU: "),  # after
    ],
)
def test_too_little_memory_on_rank_1(
    call: str, number: int, code: ErrorCode, said: str, fake_engine: FakeEngine, tmp_path: Path
) -> None:
    failure = {"call": call, "number": number, "status": OUT_OF_MEMORY, "device": 1}
    begin = time.monotonic()
    with ranked_workers(tmp_path, fail=failure):
        error = refused(ranked(fake_engine, (2, 1)))
    assert error.code == code
    assert str(error).startswith(f"rank 1: {said}")
    assert time.monotonic() - begin < fake_nccl.TIMEOUT_S


# ------------------------------------------------------------------------------------------------------------- failures


@pytest.fixture
def options() -> EngineOptions:
    return EngineOptions(max_batch_size=4, max_num_tokens=16)


ENDLESS = [EngineRequest([5 + i, 9], max_tokens=60, ignore_eos=True) for i in range(3)]


def check_failed(answers: list[Answer], *texts: str) -> None:
    for answer in answers:
        assert answer.end.reason is FinishReason.ERROR
        assert isinstance(answer.end.error, RankFailedError)
        assert [text for text in texts if text not in str(answer.end.error)] == []


def check_ended(workers: Workers) -> None:
    """All ranks, by themselves: the engine is still open."""
    wait_until(lambda: processes_of(workers) == {}, "a rank goes on")


@pytest.mark.parametrize(("sizes", "victim"), [((2, 1), 1), ((1, 2), 0), ((2, 2), 3)], ids=str)
def test_a_rank_that_dies_while_another_waits_for_it(
    sizes: tuple[int, int], victim: int, fake_engine: FakeEngine, tmp_path: Path, options: EngineOptions
) -> None:
    """Requests fail at once, with its name; and the other ends, though its device waits."""
    with ranked_workers(tmp_path) as workers, Engine(ranked(fake_engine, sizes), options) as engine:
        processes = processes_of(workers)
        handles = engine.submit(ENDLESS)
        first = handles[0].get(timeout_s=60)
        os.kill(processes[victim], signal.SIGSTOP)
        time.sleep(0.3)  # what the others can do without it is done
        begin = time.monotonic()
        os.kill(processes[victim], signal.SIGKILL)
        answers = [Answer([*start, *each.events()]) for start, each in zip(([first], [], []), handles, strict=True)]
        check_failed(answers, f"rank {victim} (process {processes[victim]}) was killed by SIGKILL")
        check_ended(workers)
        assert time.monotonic() - begin < 5
        check_failed(run(engine, [greedy([5])]), f"rank {victim} ")


@pytest.mark.parametrize(
    ("sizes", "call", "number"),
    [((2, 1), "cuEventQuery", 9), ((2, 1), "execute_async_v3", 2), ((1, 2), "cuMemcpyHtoDAsync", 4)],
)
def test_a_device_of_rank_1_that_fails(
    sizes: tuple[int, int],
    call: str,
    number: int,
    fake_engine: FakeEngine,
    tmp_path: Path,
    options: EngineOptions,
) -> None:
    failure = {"call": call, "number": number, "status": LAUNCH_FAILED, "device": 1}
    with (
        ranked_workers(tmp_path, fail=failure) as workers,
        Engine(ranked(fake_engine, sizes), options) as engine,
    ):
        said = "launch failed" if call.startswith("cu") else "TensorRT cannot run "
        check_failed(run(engine, ENDLESS), "rank 1: ", said)
        check_ended(workers)


def test_a_rank_that_stands_still(fake_engine: FakeEngine, tmp_path: Path) -> None:
    """The one that waits for it counts as hung too; the other one is stopped when the engine ends."""
    options = EngineOptions(max_batch_size=4, max_num_tokens=16, rank_timeout_s=2)
    with ranked_workers(tmp_path) as workers, Engine(ranked(fake_engine, (2, 1)), options) as engine:
        processes = processes_of(workers)
        (handle,) = engine.submit(ENDLESS[:1])
        first = handle.get(timeout_s=60)
        os.kill(processes[1], signal.SIGSTOP)
        check_failed([Answer([first, *handle.events()])], "rank ")
        wait_until(lambda: [*processes_of(workers)] == [1], "rank 0 goes on")


def test_shutting_down_in_the_middle(fake_engine: FakeEngine, tmp_path: Path, options: EngineOptions) -> None:
    """In order: no rank is killed, which would take the time that they have."""
    with ranked_workers(tmp_path) as workers, Engine(ranked(fake_engine, (2, 2)), options) as engine:
        handles = engine.submit(ENDLESS)
        handles[0].get(timeout_s=60)
        engine.shutdown()
        ends = [list(handle.events())[-1] for handle in handles]
        assert {Answer([end]).end.reason for end in ends} == {FinishReason.CANCELLED}
        check_ended(workers)


# ---------------------------------------------------------------------------------------------- the session by itself


class Group:
    """In place of an NcclGroup. Writes down how many calls of the driver came before it was ended."""

    def __init__(self, missing: str = "") -> None:
        self.missing = missing
        self.aborted: list[int] = []

    def check(self) -> None:
        if self.missing:
            raise GroupError(self.missing)

    def abort(self) -> None:
        self.aborted.append(len(driver.calls))


def check_given_up(world: World, group: Group) -> None:
    """Closing it ends the group, and asks nothing of the device; then the world can end as any."""
    num_calls = len(driver.calls)
    world.session.close()
    assert group.aborted == [num_calls] == [len(driver.calls)]
    assert ABANDONED.pop() is world.session  # or what it runs would be destroyed, which waits for the device
    world.session._group = None


def test_a_step_in_flight_is_not_waited_for(fake_engine: FakeEngine) -> None:
    with open_world(fake_engine("float16")) as world:
        group = world.session._group = Group()
        world.session.enqueue(world.step([world.prompt([5, 9], block=0)]))
        check_given_up(world, group)


def test_a_step_that_was_refused_half_way_is_not_waited_for(fake_engine: FakeEngine) -> None:
    with open_world(fake_engine("float16"), {"fail": {"call": "execute_async_v3", "number": 1}}) as world:
        group = world.session._group = Group()
        with pytest.raises(DeviceError, match="TensorRT cannot run"):
            world.session.enqueue(world.step([world.prompt([5, 9], block=0)]))
        check_given_up(world, group)


def test_a_rank_that_did_not_do_its_part(fake_engine: FakeEngine) -> None:
    with open_world(fake_engine("float16")) as world:
        group = world.session._group = Group("tensor rank 1 did not come")
        step = world.step([world.prompt([5, 9], block=0)])
        with pytest.raises(GroupError, match="tensor rank 1 did not come"):
            world.run(step)
        check_given_up(world, group)


def test_graphs_go_before_the_group(fake_engine: FakeEngine) -> None:
    """Those of NCCL are used by graphs that captured them."""
    with open_world(fake_engine("float16")) as world:
        group = world.session._group = Group()
        world.run(world.step([world.prompt([5], block=0)]))
    names = [call[0] for call in driver.calls]
    (end,) = group.aborted
    assert "cuGraphExecDestroy" in names[:end]
    assert "cuMemFree" not in names[:end]


# --------------------------------------------------------------------------------------------------- the meeting itself


def test_a_rank_that_does_not_come_is_no_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_nccl, "TIMEOUT_S", 0.1)
    monkeypatch.setattr(fake_nccl, "_MOMENT_S", 0.02)
    with pytest.raises(fake_nccl.MeetingError, match=r"rank 0 of 2 .* waited 0.1 s for \['join.1'\]"):
        fake_nccl._Communicator(tmp_path, 2, 0)
    (tmp_path / "join.1").touch()
    communicator = fake_nccl._Communicator(tmp_path, 2, 0)
    with pytest.raises(Unfinished):
        communicator.receive(1, 8)
