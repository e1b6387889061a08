"""Ranks as the processes of an MPI job: the same bits as on one host, the same errors, and an end in every case.

The jobs run under the MPICH that the tests install, with its shared memory disabled: all that ranks have are messages.
Where this machine lets the tests make network namespaces, two ranks run in one each, as on two hosts.
"""

import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from precast import LLM
from precast.cli import main as precast_command
from tests.precast.mpi_program import RESULT, sampled
from tests.processes import is_running, processes_with

RanksEngine = Callable[[str, int, int], Path]
BIN = Path(sys.executable).parent
PROGRAM = Path(__file__).with_name("mpi_program.py")
CABLE = "cable"
# MPICH has shared memory of its own, and so has UCX, below it.
NO_SHARED_MEMORY = {"MPIR_CVAR_NOLOCAL": "1", "UCX_TLS": "tcp,self"}


@pytest.fixture(scope="module")
def mpi_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("mpi") / "libprecast_mpi.so"
    assert precast_command(["build-mpi", "--mpicc", str(BIN / "mpicc"), "--output", str(library)]) == 0
    return library


@dataclass(frozen=True)
class Job:
    """How an MPI job ended."""

    status: int
    results: list[Any]
    output: str


Run = Callable[..., Job]


def workers_of(job: str) -> list[int]:
    return [pid for pid in processes_with(f"PRECAST_TEST_JOB={job}") if is_running(pid)]


@pytest.fixture
def run(mpi_library: Path) -> Run:
    """`run(2, engine, "generate")`: a job of two processes; nothing of it is left when it has ended."""

    def start(num_ranks: int, *arguments: object, mpiexec: tuple[str, ...] = (), **variables: str) -> Job:
        job = uuid.uuid4().hex
        environment = {
            **os.environ,
            **NO_SHARED_MEMORY,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": "",
            "PRECAST_MPI": str(mpi_library),
            "PRECAST_TEST_JOB": job,
            **variables,
        }
        launch = [*(mpiexec or (str(BIN / "mpiexec"),)), "-n", str(num_ranks), str(BIN / "precast"), "launch"]
        command = [*launch, sys.executable, str(PROGRAM), *map(str, arguments)]
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=120, env=environment, check=False, stdin=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 10
        while workers_of(job):
            assert time.monotonic() < deadline, workers_of(job)
            time.sleep(0.05)
        results = [json.loads(line.removeprefix(RESULT)) for line in ended.stdout.splitlines() if RESULT in line]
        return Job(ended.returncode, results, ended.stdout + ended.stderr)

    return start


def alone(engine: Path) -> Any:
    """What the ranks of one host say, through shared memory."""
    with LLM(engine, skip_tokenizer_init=True) as llm:
        return json.loads(json.dumps(sampled(llm)))


class TestTokens:
    @pytest.mark.parametrize(("tensor_size", "pipeline_size"), [(2, 1), (1, 2), (4, 1), (2, 2)])
    def test_the_bits_are_those_of_shared_memory(
        self, tensor_size: int, pipeline_size: int, ranks_engine: RanksEngine, run: Run
    ) -> None:
        engine = ranks_engine("bfloat16", tensor_size, pipeline_size)
        job = run(tensor_size * pipeline_size, engine, "generate")
        assert job.status == 0, job.output
        first, second, said = job.results
        assert first == alone(engine)
        assert second == first
        assert len(said) == 2 * (tensor_size * pipeline_size - 1)
        assert all(": loaded " in line for line in said)

    def test_with_the_shared_memory_of_mpi(self, ranks_engine: RanksEngine, run: Run) -> None:
        engine = ranks_engine("bfloat16", 2, 1)
        job = run(2, engine, "generate", MPIR_CVAR_NOLOCAL="0", UCX_TLS="all")
        assert job.status == 0, job.output
        assert job.results[0] == alone(engine)


class TestLoading:
    def test_a_job_of_another_size(self, ranks_engine: RanksEngine, tiny_engine: Callable[..., Path], run: Run) -> None:
        job = run(3, ranks_engine("gqa", 2, 1), "load", tiny_engine("gqa"))
        assert job.status == 0, job.output
        assert job.results == [
            ["InvalidRequestError", "the engine has 2 ranks, and the MPI job 3: start it with mpiexec -n 2"],
            ["InvalidRequestError", "the engine has 1 rank, and the MPI job 3: start it with mpiexec -n 1"],
        ]

    def test_a_rank_that_cannot_load_says_why_and_the_next_engine_runs(
        self, ranks_engine: RanksEngine, tmp_path: Path, run: Run
    ) -> None:
        engine = ranks_engine("gqa", 2, 1)
        broken = Path(shutil.copytree(engine, tmp_path / "engine"))
        graph = broken / "rank1" / "model.onnx"
        graph.write_bytes(bytes(graph.stat().st_size))
        job = run(2, broken, "load", engine)
        assert job.status == 0, job.output
        (error, message), number = job.results
        assert error != "RankFailedError"
        assert message.startswith("rank 1: ")
        assert "rank1/model.onnx" in message
        assert number == 8

    def test_replies_to_a_load_that_failed_are_not_taken_for_those_to_the_next(
        self, ranks_engine: RanksEngine, tmp_path: Path, run: Run
    ) -> None:
        """Nobody reads what ranks behind the broken one have said."""
        engine = ranks_engine("gqa", 4, 1)
        broken = [Path(shutil.copytree(engine, tmp_path / f"engine{rank}")) for rank in (1, 3, 0)]
        for path, rank in zip(broken, (1, 3, 0), strict=True):
            graph = path / f"rank{rank}" / "model.onnx"
            graph.write_bytes(bytes(graph.stat().st_size))
        job = run(4, broken[0], "load", *broken[1:], engine)
        assert job.status == 0, job.output
        (_, first), (_, second), (_, third), number = job.results
        assert first.startswith("rank 1: ")
        assert second.startswith("rank 3: ")
        assert "rank0/model.onnx" in third
        assert not third.startswith("rank ")
        assert number == 8

    def test_a_program_that_loads_nothing_ends_the_job(self, run: Run) -> None:
        assert run(2, "-", "nothing", 0).status == 0
        assert run(2, "-", "nothing", 7).status == 7

    def test_an_engine_that_nobody_closes(self, ranks_engine: RanksEngine, run: Run) -> None:
        job = run(2, ranks_engine("gqa", 2, 1), "leave", 5)
        assert job.results == [8]
        assert job.status == 5, job.output

    def test_a_program_that_is_not_there_ends_the_job(self, mpi_library: Path) -> None:
        command = [str(BIN / "mpiexec"), "-n", "2", str(BIN / "precast"), "launch", "no-such-program"]
        environment = {**os.environ, "PRECAST_MPI": str(mpi_library)}
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
        assert ended.returncode == 127
        assert "precast: error: no-such-program: No such file or directory" in ended.stderr

    def test_without_a_launcher_or_a_compiler(
        self, mpi_library: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("PRECAST_MPI", str(mpi_library))
        assert precast_command(["launch", "true"]) == 1
        assert "start this with mpiexec or srun" in capfd.readouterr().err
        assert precast_command(["launch"]) == 2
        assert precast_command(["build-mpi", "--mpicc", "no-such-mpicc"]) == 1
        assert "there is no no-such-mpicc" in capfd.readouterr().err
        assert precast_command(["build-mpi", "--mpicc", "false"]) == 1
        assert "false cannot compile" in capfd.readouterr().err

    @pytest.mark.parametrize("rank", [0, 1])
    def test_a_rank_that_cannot_start_mpi_ends_the_job(self, rank: int, mpi_library: Path, tmp_path: Path) -> None:
        """The others wait in MPI's start for it."""
        program = f'[ "$PMI_RANK" = {rank} ] && export PRECAST_MPI="$1"; exec "$2" launch "$3" "$4" - nothing 0'
        paths = [tmp_path / "none.so", BIN / "precast", sys.executable, PROGRAM]
        command = [str(BIN / "mpiexec"), "-n", "2", "sh", "-c", program, "sh", *map(str, paths)]
        environment = {**os.environ, "PRECAST_MPI": str(mpi_library)}
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
        assert ended.returncode != 0
        assert "none.so does not exist: run `precast build-mpi` once" in ended.stderr

    def test_a_program_that_is_started_in_every_rank_ends_the_job(
        self, ranks_engine: RanksEngine, mpi_library: Path
    ) -> None:
        command = [
            str(BIN / "mpiexec"),
            "-n",
            "2",
            sys.executable,
            str(PROGRAM),
            str(ranks_engine("gqa", 2, 1)),
            "load",
        ]
        environment = {**os.environ, "PRECAST_MPI": str(mpi_library)}
        started = time.monotonic()
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
        assert ended.returncode != 0
        assert "this is rank 1 of an MPI job, and engines are loaded in rank 0" in ended.stdout
        assert time.monotonic() - started < 30

    def test_a_library_that_is_another_one(
        self, ranks_engine: RanksEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine = ranks_engine("gqa", 2, 1)
        monkeypatch.setenv("PRECAST_MPI", str(tmp_path / "none.so"))
        with pytest.raises(Exception, match=r"cannot open precast's part for MPI: .*none\.so.*precast build-mpi"):
            LLM(engine, skip_tokenizer_init=True)
        monkeypatch.setenv("PRECAST_MPI", "libm.so.6")
        with pytest.raises(Exception, match=r'"libm\.so\.6" is not this precast.s part for MPI'):
            LLM(engine, skip_tokenizer_init=True)


class TestFailure:
    @pytest.mark.parametrize("sizes", [(2, 1), (2, 2)])
    def test_a_rank_that_is_stopped_is_named(self, sizes: tuple[int, int], ranks_engine: RanksEngine, run: Run) -> None:
        job = run(sizes[0] * sizes[1], ranks_engine("gqa", *sizes), "stop")
        assert job.status != 0  # a rank has failed, and the job with it
        ((reason,), again) = job.results
        assert "has made no progress for 1 s, while rank" in reason
        assert not reason.startswith("rank 0")
        assert again == f"the MPI job has failed: {reason}; start it again"

    def test_a_rank_that_is_stopped_while_nobody_waits_for_it_does_not_hold_up_the_end(
        self, ranks_engine: RanksEngine, run: Run
    ) -> None:
        started = time.monotonic()
        job = run(2, ranks_engine("gqa", 2, 1), "stop_idle")
        assert job.results == [8]
        assert job.status != 0
        assert time.monotonic() - started < 40

    def test_a_rank_that_is_killed_ends_the_job(self, ranks_engine: RanksEngine, run: Run) -> None:
        """That is what MPI launchers do; there is no request left that could wait."""
        started = time.monotonic()
        assert run(2, ranks_engine("gqa", 2, 1), "kill").status != 0
        assert time.monotonic() - started < 30


def do(command: str) -> str:
    return subprocess.run(command.split(), check=True, capture_output=True, text=True).stdout


def connect(names: list[str]) -> None:
    """Makes two network namespaces, with a link of the name CABLE in each."""
    for name in names:
        do(f"ip netns add {name}")
        do(f"ip netns exec {name} true")
    do(f"ip -n {names[0]} link add {CABLE} type veth peer name {CABLE} netns {names[1]}")
    for number, name in enumerate(names, start=1):
        do(f"ip -n {name} link set lo up")
        do(f"ip -n {name} addr add 10.77.0.{number}/24 dev {CABLE}")
        do(f"ip -n {name} link set {CABLE} up")
    deadline = time.monotonic() + 10
    for name in names:  # a link is up a moment after it was told to be
        while " UP " not in do(f"ip -n {name} -br link show {CABLE}") and time.monotonic() < deadline:
            time.sleep(0.01)


@pytest.fixture
def two_hosts(tmp_path: Path) -> Iterator[tuple[str, ...]]:
    """mpiexec for two network namespaces with a cable between them."""
    names = [f"precast-{os.getpid()}-{number}" for number in (1, 2)]
    try:
        try:
            connect(names)
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", None) or error
            pytest.skip(f"this machine makes no network namespaces with a link between them: {said}")
        launcher = tmp_path / "launcher"
        launcher.write_text(
            '#!/bin/sh\nwhile [ "${1#-}" != "$1" ]; do shift; done\nhost=$1\nshift\n'
            f'exec ip netns exec "{names[0][:-1]}${{host##*.}}" sh -c "$*"\n'
        )
        launcher.chmod(0o755)
        start = (
            f"ip netns exec {names[0]} {BIN / 'mpiexec'} -launcher ssh -launcher-exec {launcher} -iface {CABLE} -ppn 1"
        )
        yield (*start.split(), "-hosts", "10.77.0.1,10.77.0.2")
    finally:
        if shutil.which("ip"):
            for name in names:
                subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


class TestTwoHosts:
    @pytest.mark.parametrize("sizes", [(2, 1), (1, 2)])
    def test_the_bits_are_those_of_one(
        self, sizes: tuple[int, int], ranks_engine: RanksEngine, run: Run, two_hosts: tuple[str, ...]
    ) -> None:
        engine = ranks_engine("bfloat16", *sizes)
        job = run(2, engine, "generate", mpiexec=two_hosts, UCX_NET_DEVICES=CABLE)
        assert job.status == 0, job.output
        assert job.results[0] == alone(engine)

    def test_a_cable_that_is_pulled(self, ranks_engine: RanksEngine, run: Run, two_hosts: tuple[str, ...]) -> None:
        job = run(
            2, ranks_engine("gqa", 2, 1), "cut", mpiexec=two_hosts, UCX_NET_DEVICES=CABLE, PRECAST_TEST_LINK=CABLE
        )
        assert len(job.results) == 2, (job, job.output)
        ((reason,), _) = job.results
        assert reason == "rank 1 has made no progress for 1 s, while rank 0 waited for it to meet it"
