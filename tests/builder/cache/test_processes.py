"""The cache between real processes: who waits, who is killed, who forks."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from precast.builder.cache.store import BuildCache
from tests.builder.cache.worlds import NEVER_FULL, builder, description, left_overs, must_not_build
from tests.checkpoints.tiny_engine import elsewhere

TIMEOUT_S = 60
PROLOGUE = """
import os, signal, sys, time
from pathlib import Path
from precast.builder.cache import directory, entry, store
from tests.builder.cache.worlds import *

cache = store.BuildCache(sys.argv[1], max_bytes=NEVER_FULL)

def say(text):
    print(text, flush=True)

def wait():
    assert sys.stdin.readline() == "go\\n"
"""


@contextmanager
def started(program: str, cache: BuildCache, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that is killed when the test is done with it, however that ends."""
    command = [sys.executable, "-c", PROLOGUE + program, str(cache.directory)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes, **elsewhere(tmp_path)) as process:  # type: ignore[call-overload]
        timer = threading.Timer(TIMEOUT_S, process.kill)  # whoever reads its pipes reads their end then
        timer.start()
        try:
            yield process
        finally:
            timer.cancel()
            process.kill()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def end(process: subprocess.Popen[str], status: int = 0) -> str:
    """Its stderr."""
    _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == status, errors
    return errors


@pytest.fixture
def cache(tmp_path: Path) -> BuildCache:
    return BuildCache(tmp_path / "cache", max_bytes=NEVER_FULL)


BUILD = """
def build(output_dir):
    say("building")
    wait()
    make_engine(output_dir)

with cache.get_or_build(description("a"), build) as cached:
    say("hit" if cached.is_hit else "miss")
"""


def test_two_that_build_the_same_build_it_once_and_the_second_says_that_it_waits(
    cache: BuildCache, tmp_path: Path
) -> None:
    with started(BUILD, cache, tmp_path) as first, started("say('ready')\nwait()\n" + BUILD, cache, tmp_path) as second:
        assert said(second) == "ready"
        assert said(first) == "building"
        tell(second)
        assert second.stderr is not None
        waiting = second.stderr.readline()
        assert waiting.startswith(f"build cache: another process builds this engine in {cache.directory}/building/")
        assert waiting.endswith(": waiting for it\n")
        tell(first)
        assert said(first) == "miss"
        assert said(second) == "hit"
        assert end(first) == end(second) == ""


def test_eight_that_start_at_once_build_it_once(cache: BuildCache, tmp_path: Path) -> None:
    program = """
say("ready")
wait()
with cache.get_or_build(description("a"), builder()) as cached:
    say("hit" if cached.is_hit else "miss")
"""
    with ExitStack() as stack:
        processes = [stack.enter_context(started(program, cache, tmp_path)) for _ in range(8)]
        assert [said(process) for process in processes] == ["ready"] * 8
        for process in processes:
            tell(process)
        assert sorted(said(process) for process in processes) == ["hit"] * 7 + ["miss"]
        for process in processes:
            end(process)
    assert len(cache.entries()) == 1
    assert left_overs(cache.directory) == {}


def test_another_engine_need_not_wait(cache: BuildCache, tmp_path: Path) -> None:
    with started(BUILD, cache, tmp_path) as process:
        assert said(process) == "building"
        cache.get_or_build(description("b"), builder()).release()
        assert list(left_overs(cache.directory)) == ["building", "locks"]  # of the one that builds: nobody sweeps it
        tell(process)
        assert said(process) == "miss"
        end(process)
    assert len(cache.entries()) == 2


def test_who_waits_for_a_builder_that_is_killed_builds(cache: BuildCache, tmp_path: Path) -> None:
    with started(BUILD, cache, tmp_path) as first:
        assert said(first) == "building"
        with started(BUILD, cache, tmp_path) as second:
            assert second.stderr is not None
            assert "waiting for it" in second.stderr.readline()
            first.kill()
            assert said(second) == "building"
            tell(second)
            assert said(second) == "miss"
            end(second)
    assert left_overs(cache.directory) == {}


KILLED = """
def kill(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

def half(output_dir):
    make_engine(output_dir)
    (output_dir / "engine.json").unlink()
    kill()
"""
MOMENTS = {
    "while it builds": "cache.get_or_build(description('a'), half)",
    "before it is described": "store.write_record = kill",
    "before it gets its name": "Path.rename = kill",
    "when it has got its name": "store.sync_directory = kill",
    "before it is marked as used": "store.write_last_use = kill",
    "before the folder is removed": "directory._delete = kill",
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_builder_that_is_killed_blocks_nobody(cache: BuildCache, tmp_path: Path, moment: str) -> None:
    program = f"{KILLED}\n{MOMENTS[moment]}\ncache.get_or_build(description('a'), builder())"
    with started(program, cache, tmp_path) as process:
        end(process, -signal.SIGKILL)
    is_complete = (cache.directory / "entries").is_dir() and bool(cache.entries())
    if moment == "before the folder is removed":  # the very first thing that is deleted is what an earlier one left
        assert not is_complete
    else:
        assert is_complete == (moment in ("when it has got its name", "before it is marked as used"))
    build = must_not_build if is_complete else builder()
    cache.get_or_build(description("a"), build).release()
    cache.prune()
    assert len(cache.entries()) == 1
    assert left_overs(cache.directory) == {}


@pytest.mark.parametrize("name", ["a", "b"])
def test_what_a_killed_builder_left_is_swept_by_who_builds_next(cache: BuildCache, tmp_path: Path, name: str) -> None:
    with started(KILLED + "cache.get_or_build(description('a'), half)", cache, tmp_path) as process:
        end(process, -signal.SIGKILL)
    assert list(left_overs(cache.directory)) == ["building", "locks"]
    cache.get_or_build(description(name), builder()).release()
    assert left_overs(cache.directory) == {}


def test_one_that_is_killed_while_it_removes(cache: BuildCache, tmp_path: Path) -> None:
    cache.get_or_build(description("a"), builder()).release()
    with started(KILLED + "directory._delete = kill\ncache.clear()", cache, tmp_path) as process:
        end(process, -signal.SIGKILL)
    assert list(left_overs(cache.directory)) == ["trash"]
    assert cache.entries() == []
    cache.prune()
    assert left_overs(cache.directory) == {}


def test_an_engine_in_use_stays_until_its_user_ends(cache: BuildCache, tmp_path: Path) -> None:
    program = """
held = cache.get_or_build(description("a"), builder())
say("held")
wait()
"""
    with started(program, cache, tmp_path) as process:
        assert said(process) == "held"
        assert BuildCache(cache.directory, max_bytes=0).prune().num_entries == 0
        assert cache.clear().num_entries == 0
        assert [entry.in_use for entry in cache.entries()] == [True]
        process.kill()
        end(process, -signal.SIGKILL)
    assert [entry.in_use for entry in cache.entries()] == [False]
    assert cache.clear().num_entries == 1


def test_a_fork_keeps_it_in_use(cache: BuildCache, tmp_path: Path) -> None:
    program = """
held = cache.get_or_build(description("a"), builder())
child = os.fork()
if child == 0:
    wait()
    os._exit(0)
held.release()
say("released")
os.waitpid(child, 0)
say("the fork has ended")
wait()
"""
    with started(program, cache, tmp_path) as process:
        assert said(process) == "released"
        assert [entry.in_use for entry in cache.entries()] == [True]
        tell(process)
        assert said(process) == "the fork has ended"
        assert [entry.in_use for entry in cache.entries()] == [False]
        tell(process)
        end(process)


def test_ctrl_c_ends_a_wait(cache: BuildCache, tmp_path: Path) -> None:
    with started(BUILD, cache, tmp_path) as first:
        assert said(first) == "building"
        with started(BUILD, cache, tmp_path) as second:
            assert second.stderr is not None
            assert "waiting for it" in second.stderr.readline()
            os.kill(second.pid, signal.SIGINT)
            assert "KeyboardInterrupt" in end(second, -signal.SIGINT)
        tell(first)
        assert said(first) == "miss"
        end(first)


def test_many_processes_with_little_room(cache: BuildCache, tmp_path: Path) -> None:
    """They use, evict and clear at once: nobody fails, and what is held stays whole."""
    program = """
import random
cache = store.BuildCache(sys.argv[1], max_bytes=60_000, max_entries=3)
random.seed(os.getpid())
for _ in range(150):
    name = random.choice("abcdef")
    size_bytes = 10_000 * (ord(name) - 96)
    with cache.get_or_build(description(name), builder(size_bytes), source=name) as cached:
        for _ in range(3):
            assert entry.find_damage(cached.engine_dir.parent) is None
            assert (cached.engine_dir / "rank0/weights.bin").stat().st_size == size_bytes
    if random.random() < 0.05:
        random.choice([cache.clear, cache.prune])()
"""
    with ExitStack() as stack:
        processes = [stack.enter_context(started(program, cache, tmp_path)) for _ in range(4)]
        for process in processes:
            errors = end(process)
            assert all("over the limit" in line or "waiting for it" in line for line in errors.splitlines()), errors
    small = BuildCache(cache.directory, max_bytes=60_000, max_entries=3)
    small.prune()
    assert sum(entry.size_bytes for entry in small.entries()) <= 60_000
    assert len(small.entries()) <= 3
    assert left_overs(cache.directory) == {}
