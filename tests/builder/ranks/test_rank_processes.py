"""Ranks that are built by processes beside each other."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from precast.builder import processes
from precast.builder.build import build_engine
from precast.builder.build_config import BuildConfig
from precast.builder.errors import BuildError
from precast.builder.packing import STAGE
from precast.builder.ranks.rank_job import RankJob, error_from_json, error_to_json
from precast.checkpoints.checkpoint import open_checkpoint
from precast.checkpoints.engine_dir import read_manifest, verify_files
from precast.checkpoints.engine_errors import EngineIOError
from precast.checkpoints.errors import PartitionError
from precast.checkpoints.ranks.convert import convert_checkpoint
from precast.checkpoints.ranks.mapping import Mapping
from tests.processes import children_of, is_running

Tiny = Callable[[str], Path]
TWO_BY_TWO = BuildConfig(tensor_parallel_size=2, pipeline_parallel_size=2)


def build(source: Path, target: Path, config: BuildConfig = TWO_BY_TWO, **options: Any) -> Path:
    with open_checkpoint(source) as checkpoint:
        build_engine(checkpoint, target, config, **options)
    return target


def contents(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def test_an_engine_of_four_ranks(tiny_llama: Tiny, tmp_path: Path) -> None:
    engine = build(tiny_llama("gqa"), tmp_path / "engine")
    manifest = read_manifest(engine)
    verify_files(engine, manifest)
    assert manifest.mapping == Mapping.of(2, 2)
    assert [rank.graph for rank in manifest.ranks] == [f"rank{rank}/model.onnx" for rank in range(4)]
    assert [rank.weights for rank in manifest.ranks] == [f"rank{rank}/weights.bin" for rank in range(4)]
    assert [len(rank.kv_caches) for rank in manifest.ranks] == [1, 1, 1, 1]  # a layer each
    ops = {"AllGather", "AllReduce", "Receive", "Send"}
    assert {f"ai.precast.{op}/1" for op in ops} <= set(manifest.requires)
    assert (engine / "tokenizer" / "tokenizer.json").is_file()


def test_the_number_of_processes_changes_no_byte(tiny_llama: Tiny, tmp_path: Path) -> None:
    one = build(tiny_llama("bfloat16"), tmp_path / "one", num_processes=1)
    many = build(tiny_llama("bfloat16"), tmp_path / "many", num_processes=9)
    assert contents(one) == contents(many)


@pytest.mark.parametrize("converted_for", [Mapping.of(2, 2), Mapping.of(4, 1)])
def test_a_divided_checkpoint_builds_the_same_ranks(converted_for: Mapping, tiny_llama: Tiny, tmp_path: Path) -> None:
    with open_checkpoint(tiny_llama("tied")) as checkpoint:
        convert_checkpoint(checkpoint, tmp_path / "ranks", converted_for)
    direct = contents(build(tiny_llama("tied"), tmp_path / "direct"))
    divided = contents(build(tmp_path / "ranks", tmp_path / "divided"))
    for files in (direct, divided):
        del files["tokenizer/config.json"], files["engine.json"]  # which names that file's hash
    assert direct == divided


def test_a_divided_checkpoint_is_built_for_its_own_sizes(tiny_llama: Tiny, tmp_path: Path) -> None:
    with open_checkpoint(tiny_llama("gqa")) as checkpoint:
        convert_checkpoint(checkpoint, tmp_path / "ranks", Mapping.of(2, 1))
    assert read_manifest(build(tmp_path / "ranks", tmp_path / "own", BuildConfig())).mapping == Mapping.of(2, 1)
    one = BuildConfig(tensor_parallel_size=1)
    assert read_manifest(build(tmp_path / "ranks", tmp_path / "one", one)).mapping == Mapping.of(1, 1)


def test_a_stage_without_a_group_of_windows_has_its_block_tables(tiny_llama: Tiny, tmp_path: Path) -> None:
    """Layer 0 sees everything, layers 1 and 2 a window: the second stage has no layer of the first group."""
    config = BuildConfig(pipeline_parallel_size=2)
    manifest = read_manifest(build(tiny_llama("qwen2_window"), tmp_path / "engine", config))
    first, second = manifest.ranks
    assert first.kv_groups == second.kv_groups
    assert [group.window for group in first.kv_groups] == [None, 4]
    assert {cache.group for rank in manifest.ranks for cache in rank.kv_caches} == {0, 1}
    assert {cache.group for cache in second.kv_caches} == {1}


def test_progress_is_that_of_all_ranks(tiny_llama: Tiny, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    build(tiny_llama("gqa"), tmp_path / "engine", progress=lambda *call: calls.append(call))
    assert {(stage, total) for stage, _, total in calls} == {(STAGE, calls[0][2])}
    done = [call[1] for call in calls]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, calls[0][2])


def test_every_rank_dumps_its_graphs(tiny_llama: Tiny, tmp_path: Path) -> None:
    build(tiny_llama("gqa"), tmp_path / "engine", dump_graphs=tmp_path / "graphs")
    assert sorted(path.name for path in (tmp_path / "graphs").iterdir()) == ["rank0", "rank1", "rank2", "rank3"]
    assert "AllReduce" in (tmp_path / "graphs" / "rank1" / "00_emitted.txt").read_text()


class TestWhatGoesWrong:
    def test_sizes_that_do_not_divide(self, tiny_llama: Tiny, tmp_path: Path) -> None:
        with pytest.raises(PartitionError, match="layer 0 has an intermediate size of 150; sizes that work: 1, 2"):
            build(tiny_llama("odd_intermediate"), tmp_path / "engine", BuildConfig(tensor_parallel_size=4))
        assert list(tmp_path.iterdir()) == []

    def test_an_error_of_a_rank_is_the_builds(
        self, tiny_llama: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def wrong_backend(job: RankJob) -> str:
            fields = json.loads(to_json(job))
            return json.dumps({**fields, "backend": "nothing"} if job.rank == 2 else fields)

        to_json = RankJob.to_json
        monkeypatch.setattr(RankJob, "to_json", wrong_backend)
        with pytest.raises(BuildError, match="rank 2: backend 'nothing' is unknown"):
            build(tiny_llama("gqa"), tmp_path / "engine")
        assert list(tmp_path.iterdir()) == []

    def test_a_file_that_cannot_be_written(
        self, tiny_llama: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def taken(job: RankJob) -> str:
            rank = Path(job.output) / f"rank{job.rank}"
            rank.mkdir()
            (rank / "weights.bin").touch()
            return to_json(job)

        to_json = RankJob.to_json
        monkeypatch.setattr(RankJob, "to_json", taken)
        with pytest.raises(EngineIOError, match=r"engine/rank\d/weights.bin: cannot be written: File exists"):
            build(tiny_llama("gqa"), tmp_path / "engine")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("program", "message"),
        [
            (
                "import os; os.kill(os.getpid(), 9)",
                r"rank \d: .* was killed by SIGKILL, as the system does when memory",
            ),
            ("import os; os.kill(os.getpid(), 11)", r"rank \d: .* was killed by SIGSEGV$"),
            ("raise RuntimeError('a fault of ours')", r"rank \d: .* exit status 1: .*RuntimeError: a fault of ours$"),
            ("import sys; sys.stdin.read(); sys.exit(0)", r"rank \d: .* ended with exit status 0$"),
        ],
    )
    def test_a_process_that_ends_without_an_answer(
        self, program: str, message: str, tiny_llama: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(processes, "_PROGRAM", program)
        with pytest.raises(BuildError, match=message):
            build(tiny_llama("gqa"), tmp_path / "engine")
        assert list(tmp_path.iterdir()) == []

    def test_the_first_that_fails_ends_the_others(
        self, tiny_llama: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        program = "import json, sys, time\nif json.load(sys.stdin)['rank'] == 1: sys.exit('no')\ntime.sleep(60)"
        monkeypatch.setattr(processes, "_PROGRAM", program)
        started, before = time.monotonic(), set(children_of(os.getpid()))
        with pytest.raises(BuildError, match=r"rank 1: .* exit status 1: no"):
            build(tiny_llama("gqa"), tmp_path / "engine", num_processes=4)
        assert time.monotonic() - started < 30
        assert set(children_of(os.getpid())) <= before

    def test_an_os_error_keeps_its_number_and_file(self) -> None:
        error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/somewhere/weights.bin")
        back = error_from_json(3, json.loads(json.dumps(error_to_json(error))))
        assert isinstance(back, OSError)
        assert (back.errno, back.filename) == (errno.ENOSPC, "/somewhere/weights.bin")

    def test_an_error_of_a_class_that_is_not_listed_is_its_base(self) -> None:
        back = error_from_json(3, json.loads(json.dumps(error_to_json(PartitionError("too many")))))
        assert (type(back).__name__, str(back)) == ("CheckpointError", "rank 3: too many")


SLOW_BUILD = """
import sys, time
from pathlib import Path
from precast.builder import processes
from precast.builder.build import build_engine
from precast.builder.build_config import BuildConfig
from precast.checkpoints.checkpoint import open_checkpoint

end = "from {module} import main; sys.exit(main())"
assert end in processes._PROGRAM
slow = "import time, {module} as p; p._build = lambda *_: time.sleep(60); sys.exit(p.main())"
processes._PROGRAM = processes._PROGRAM.replace(end, slow)
print("building", flush=True)
with open_checkpoint(sys.argv[1]) as checkpoint:
    build_engine(checkpoint, sys.argv[2], BuildConfig(tensor_parallel_size=2), num_processes=2)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_ranks_end_with_the_build(number: signal.Signals, tiny_llama: Tiny, tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", SLOW_BUILD, str(tiny_llama("gqa")), str(tmp_path / "engine")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as parent:
        children = list(wait_for(lambda: children_of(parent.pid), 2))
        wait_for(lambda: [child for child in children if ignores_interrupts(child)], 2)
        parent.send_signal(number)
        parent.wait(timeout=20)
    wait_for(lambda: [child for child in children if not is_running(child)], 2)
    if number == signal.SIGINT:
        assert list(tmp_path.iterdir()) == []


def wait_for(find: Callable[[], list[int]], count: int) -> Iterator[int]:
    """What `find` finds, when it is as many; fails after 30 s."""
    deadline = time.monotonic() + 30
    while len(found := find()) < count:
        assert time.monotonic() < deadline, found
        threading.Event().wait(0.02)
    return iter(found)


def ignores_interrupts(pid: int) -> bool:
    """Whether the process has come as far as to leave SIGINT to its parent."""
    status = Path(f"/proc/{pid}/status").read_text()
    ignored = next(line.split()[1] for line in status.splitlines() if line.startswith("SigIgn:"))
    return bool(int(ignored, 16) >> (signal.SIGINT - 1) & 1)
