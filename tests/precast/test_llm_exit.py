"""A process ends within two seconds, with the right status, and leaves nothing, whatever its LLM is doing."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

TIMEOUT_S = 60
LIMIT_S = 2

# Requests for minutes: each of its tokens is a step of its own, and they run one after the other.
PREAMBLE = """
import asyncio, gc, os, signal, sys, threading, time
from precast import LLM, QueueFullError, SamplingParams

def load(**options):
    return LLM(sys.argv[1], max_batch_size=1, max_num_tokens=1, **options)

ENDLESS = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True, stop="never in there")
PROMPT = [5] * 100

def start(llm, count=800, **settings):
    return [llm.generate_async(PROMPT, ENDLESS, streaming=i % 2 == 0, **settings) for i in range(count)]

def in_thread(work, daemon=True):
    def tolerant():
        try:
            work()
        except RuntimeError as error:
            assert str(error) == "LLM is shutting down", error
    threading.Thread(target=tolerant, daemon=daemon).start()

async def follow(future):
    async for _ in future:
        pass

def note_time():
    print(time.monotonic(), flush=True)

"""

# name: (what the program does last, its exit status, what its stderr ends with)
ENDINGS: dict[str, tuple[str, int, str]] = {
    "the end of the program": ("llm = load(); futures = start(llm)", 0, ""),
    "a half-read stream": ("llm = load(); futures = start(llm); half_read = iter(futures[0]); next(half_read)", 0, ""),
    "sys.exit": ("llm = load(); futures = start(llm); note_time(); sys.exit(3)", 3, ""),
    "an error": ("llm = load(); futures = start(llm); note_time(); 1 / 0", 1, "ZeroDivisionError: division by zero\n"),
    "a full queue": (
        """
llm = load(max_queue_size=3)
futures = []
try:
    while True:
        futures += start(llm, 1)
except QueueFullError:
    pass
in_thread(lambda: llm.generate([PROMPT] * 10, ENDLESS, use_tqdm=False))
time.sleep(0.05)
""",
        0,
        "",
    ),
    "a daemon thread in result": (
        """
llm = load(); futures = start(llm)
in_thread(futures[-1].result)
in_thread(lambda: futures[-1].result(timeout=1000))
time.sleep(0.05)
""",
        0,
        "",
    ),
    "a daemon thread in a stream": (
        "llm = load(); futures = start(llm); in_thread(lambda: list(futures[-2])); in_thread(lambda: list(futures[0]))",
        0,
        "",
    ),
    "a daemon thread in generate": (
        """
llm = load()
in_thread(lambda: llm.generate([PROMPT] * 800, ENDLESS, use_tqdm=False))
time.sleep(0.05)
""",
        0,
        "",
    ),
    "a daemon thread that waits for statistics": (
        "llm = load(); in_thread(lambda: [llm.get_stats(timeout=None) for _ in range(10**9)])",
        0,
        "",
    ),
    "an event loop in a daemon thread": (
        """
llm = load(); futures = start(llm)
async def main():
    await asyncio.gather(*(follow(future) for future in futures[:10]), futures[-1].aresult())
in_thread(lambda: asyncio.run(main()))
time.sleep(0.1)
""",
        0,
        "",
    ),
    "sys.exit within an event loop": (
        """
llm = load(); futures = start(llm)
async def main():
    tasks = [asyncio.ensure_future(follow(future)) for future in futures[:10]]
    await asyncio.sleep(0.01)
    note_time()
    sys.exit(4)
asyncio.run(main())
""",
        4,
        "",
    ),
    "after a shutdown": ("llm = load(); futures = start(llm); half_read = iter(futures[0]); llm.shutdown()", 0, ""),
    "a shutdown in another thread": (
        "llm = load(); futures = start(llm); in_thread(llm.shutdown, daemon=False)",
        0,
        "",
    ),
    "after del": ("llm = load(); futures = start(llm); del llm", 0, ""),
    "after del of everything": (
        """
llm = load(); futures = start(llm); half_read = iter(futures[0]); next(half_read)
note_time()
del llm, futures, half_read
gc.collect()
assert [thread.name for thread in threading.enumerate()] == ["MainThread"]
""",
        0,
        "",
    ),
    "a cycle": ("llm = load(); llm.futures = start(llm); del llm", 0, ""),
    "a cycle that is collected": (
        """
llm = load(); llm.futures = start(llm)
note_time()
del llm
gc.collect()
assert [thread.name for thread in threading.enumerate()] == ["MainThread"]
""",
        0,
        "",
    ),
    "two engines": ("one = load(); two = load(); futures = start(one) + start(two)", 0, ""),
    "the end of the block": (
        """
with load() as llm:
    futures = start(llm)
    note_time()
assert [thread.name for thread in threading.enumerate()] == ["MainThread"]
""",
        0,
        "",
    ),
    "an error in the block": (
        "with load() as llm:\n    futures = start(llm); note_time(); raise OSError('gone')",
        1,
        "OSError: gone\n",
    ),
    "a fork that ends first": (
        """
llm = load(); futures = start(llm)
child = os.fork()
if child == 0:
    del futures
    sys.exit(5)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
""",
        0,
        "",
    ),
    "a fork that waits for its parent's request": (
        """
llm = load(); futures = start(llm)
child = os.fork()
if child == 0:
    futures[-1].result()
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
""",
        0,
        ": load the engine again in this process\n",
    ),
}


@contextmanager
def started(program: str, *arguments: object, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A Python process that is killed when the test is done with it, however that ends."""
    # From 3.12 on, Python itself warns of a fork beside threads.
    command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", PREAMBLE + program]
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    pipe = subprocess.PIPE
    with subprocess.Popen([*command, *map(str, arguments)], env=env, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("ending", ENDINGS)
def test_it_ends_soon(ending: str, tiny_engine: Callable[..., Path], tmp_path: Path) -> None:
    program, status, last_error = ENDINGS[ending]
    with started(f"{program}\nnote_time()\n", tiny_engine("gqa"), tmp_path=tmp_path) as process:
        output, errors = process.communicate(timeout=TIMEOUT_S)
        ended_s = time.monotonic()
    assert process.returncode == status, errors
    assert errors.endswith(last_error)
    assert bool(errors) == bool(last_error), errors
    assert ended_s - float(output.split()[0]) < LIMIT_S
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", ["the end of the program", "sys.exit", "an error", "a cycle", "after del"])
def test_a_built_engine_is_removed(ending: str, tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    program, status, _ = ENDINGS[ending]
    with started(program, tiny_llama("gqa"), tmp_path=tmp_path) as process:
        _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == status, errors
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------------------------------------- Ctrl-C

# Where the main thread waits; `future` is behind hundreds of others.
WAITS = {
    "generate": "llm.generate([PROMPT], ENDLESS, use_tqdm=False, priority=0)",
    "generate with a bar": "llm.generate([PROMPT] * 100, ENDLESS, priority=0)",
    "stream": "for _ in llm.stream(PROMPT, ENDLESS): time.sleep(0.01)",
    "result": "future.result()",
    "result with a time-out": "future.result(timeout=1000)",
    "for": "list(future)",
    "await": "asyncio.run(future.aresult())",
    "async for": "asyncio.run(follow(future))",
    "gather": "asyncio.run(gather())",
    "get_stats": "while True: llm.get_stats(timeout=None)",
    "a full queue": "while True: llm.generate([PROMPT] * 3000, ENDLESS, use_tqdm=False)",
    "sleep": "time.sleep(1000)",
}

WAITING = """
llm = load(max_queue_size=2000)
futures = start(llm)
future = llm.generate_async(PROMPT, ENDLESS, priority=0)

async def gather():
    await asyncio.gather(future.aresult(), *(each.aresult() for each in futures[:10]))

in_thread(lambda: (time.sleep(0.1), print("waiting", flush=True)))
"""


def interrupt(process: subprocess.Popen[str]) -> float:
    """Ctrl-C once it waits; gives the time."""
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    return time.monotonic()


@pytest.mark.parametrize("wait", WAITS)
def test_ctrl_c_ends_it_soon(wait: str, tiny_engine: Callable[..., Path], tmp_path: Path) -> None:
    with started(WAITING + WAITS[wait], tiny_engine("gqa"), tmp_path=tmp_path) as process:
        interrupted_s = interrupt(process)
        _, errors = process.communicate(timeout=TIMEOUT_S)
        assert time.monotonic() - interrupted_s < LIMIT_S
    assert process.returncode == -signal.SIGINT, errors
    assert errors.endswith("KeyboardInterrupt\n")
    assert "Exception ignored" not in errors
    assert list(tmp_path.iterdir()) == []


CAUGHT = """
before = llm.counters["num_completed_requests"]
try:
    {wait}
except KeyboardInterrupt:
    for each in futures:
        each.abort()
    end_s = time.monotonic() + 10
    while llm.counters["num_active_requests"] + llm.counters["num_queued_requests"]:
        assert time.monotonic() < end_s
        time.sleep(0.001)
    print(future.result().outputs[0].finish_reason, llm.generate([5], SamplingParams(), use_tqdm=False).finished)
"""


@pytest.mark.parametrize("wait", [name for name, code in WAITS.items() if "future" in code or "gather" in code])
def test_ctrl_c_aborts_what_is_waited_for(wait: str, tiny_engine: Callable[..., Path], tmp_path: Path) -> None:
    """Only the others are aborted by the program; the engine becomes idle all the same, and goes on."""
    program = WAITING + CAUGHT.format(wait=WAITS[wait])
    with started(program, tiny_engine("gqa"), tmp_path=tmp_path) as process:
        interrupted_s = interrupt(process)
        output, errors = process.communicate(timeout=TIMEOUT_S)
        assert time.monotonic() - interrupted_s < LIMIT_S
    assert (process.returncode, errors, output) == (0, "", "cancelled True\n")


def test_ctrl_c_while_it_loads(tiny_engine: Callable[..., Path], tmp_path: Path) -> None:
    for delay_s in (0.0, 0.01, 0.02, 0.04):
        program = 'print("waiting", flush=True)\nwhile True: load().shutdown()'
        with started(program, tiny_engine("gqa"), tmp_path=tmp_path) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.1 + delay_s)
            os.kill(process.pid, signal.SIGINT)
            interrupted_s = time.monotonic()
            _, errors = process.communicate(timeout=TIMEOUT_S)
            assert time.monotonic() - interrupted_s < LIMIT_S
        assert process.returncode == -signal.SIGINT, errors
        assert re.search(r"KeyboardInterrupt\n$", errors), errors
