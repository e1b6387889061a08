"""Ranks that are killed, stopped or held up for a while at random moments, under load.

Whatever happens to them, every request ends with its result or with the error that names the rank, and nothing is left:
no process, no zombie, no descriptor, no thread.
"""

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from precast import LLM, SamplingParams
from precast.runtime import RankFailedError
from tests.processes import children_of, is_running
from tests.tiny_llama import PROMPTS

RanksEngine = Callable[[str, int, int], Path]
SIZES = [(2, 1), (1, 2), (2, 2), (4, 1)]
ROUNDS = 50
AT_ONCE = 4  # most of a round is waiting
HARMS = [signal.SIGKILL, signal.SIGSTOP, None]  # None: stopped, and let go on before anybody is out of patience

# Every request of a round has one of these, so that its tokens are known.
LENGTHS = [1, 20, 60, 120]


def params(length: int, seed: int) -> SamplingParams:
    return SamplingParams(temperature=0.8, seed=seed, max_tokens=length, ignore_eos=True)


@pytest.fixture(scope="module")
def expected(ranks_engine: RanksEngine) -> dict[tuple[int, int], dict[tuple[int, int], list[int]]]:
    """Of each engine: the tokens of prompt i with length n, left alone."""
    tokens: dict[tuple[int, int], dict[tuple[int, int], list[int]]] = {}
    for sizes in SIZES:
        keys = [(i, length) for i in range(len(PROMPTS)) for length in LENGTHS]
        with LLM(ranks_engine("gqa", *sizes), skip_tokenizer_init=True) as llm:
            prompts = [list(PROMPTS[i]) for i, _ in keys]
            outputs = llm.generate(prompts, [params(length, i) for i, length in keys], use_tqdm=False)
        tokens[sizes] = {key: list(output.outputs[0].token_ids) for key, output in zip(keys, outputs, strict=True)}
    return tokens


def descriptors() -> set[str]:
    """What this process's open memory files, pipes and watched processes are."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
        except FileNotFoundError:  # of the listing itself
            continue
        if re.search(r"memfd|pipe|pidfd|eventfd", target):
            found.add(f"{entry.name} {target}")
    return found


def num_threads() -> int:
    """As the system counts them: Python's own list keeps threads that called a log once and have ended."""
    return sum(1 for _ in Path("/proc/self/task").iterdir())


def one_round(
    number: int,
    engine: Path,
    sizes: tuple[int, int],
    expected: dict[tuple[int, int], list[int]],
    starts: threading.Lock,
) -> str:
    """What was done, in words. Raises AssertionError for a request that ended in another way than it may."""
    draw = random.Random(number)
    harm = HARMS[number % len(HARMS)]
    with starts:  # so that the new children are known to be this engine's
        before = set(children_of(os.getpid()))
        # A rank that is only held up must not be taken for one that is stuck, however busy this machine is.
        llm = LLM(engine, skip_tokenizer_init=True, rank_timeout_s=10 if harm is None else 1, max_batch_size=8)
        workers = sorted(set(children_of(os.getpid())) - before)
    assert len(workers) == sizes[0] * sizes[1] - 1
    rank = draw.randrange(len(workers)) + 1
    with llm:
        outcomes: list[Any] = []
        failed = threading.Event()

        def client(seed: int) -> None:
            mine = random.Random(seed)
            while not failed.is_set():
                key = (mine.randrange(len(PROMPTS)), mine.choice(LENGTHS))
                future = llm.generate_async(
                    list(PROMPTS[key[0]]), params(key[1], key[0]), streaming=mine.random() < 0.5
                )
                if mine.random() < 0.2:
                    time.sleep(mine.random() * 0.02)
                    future.abort()
                try:
                    output = future.result(timeout=30)
                except RankFailedError as error:
                    outcomes.append(str(error))
                    failed.set()
                else:
                    tokens = list(output.outputs[0].token_ids)
                    whole = output.outputs[0].finish_reason == "length"
                    outcomes.append(tokens == expected[key] if whole else tokens == expected[key][: len(tokens)])

        with ThreadPoolExecutor(6) as clients:
            running = [clients.submit(client, 100 * number + i) for i in range(6)]
            time.sleep(draw.random() * 0.4)
            if harm is None:
                os.kill(workers[rank - 1], signal.SIGSTOP)
                time.sleep(draw.random() * 0.3)
                os.kill(workers[rank - 1], signal.SIGCONT)
                time.sleep(0.1)
                failed.set()
            else:
                os.kill(workers[rank - 1], harm)
            harmed = time.monotonic()
            for each in running:
                each.result(timeout=60)  # raises what a client raised
            # A noisy machine may take longer than the second that a quiet one does.
            assert time.monotonic() - harmed < 15
        errors = {outcome for outcome in outcomes if isinstance(outcome, str)}
        assert all(outcome is True for outcome in outcomes if not isinstance(outcome, str)), "wrong tokens"
        if harm is None:
            assert not errors
        else:
            (error,) = errors
            cause = (
                rf"rank {rank} \(process {workers[rank - 1]}\) was killed by SIGKILL"
                if harm == signal.SIGKILL
                else rf"rank {rank} has made no progress for 1 s, while rank \d waited for it to .*"
            )
            assert re.fullmatch(rf"(.*: )?{cause}", error), error
            with pytest.raises(RankFailedError):
                llm.generate([5], params(1, 0), use_tqdm=False)
    assert not any(is_running(worker) for worker in workers)
    return f"{sizes} {harm} rank {rank}: {len(outcomes)} requests"


def test_every_request_ends_and_nothing_is_left(
    ranks_engine: RanksEngine, expected: dict[tuple[int, int], dict[tuple[int, int], list[int]]]
) -> None:
    children, open_before, threads = set(children_of(os.getpid())), descriptors(), num_threads()
    starts = threading.Lock()

    def run(number: int) -> str:
        sizes = SIZES[number % len(SIZES)]
        return one_round(number, ranks_engine("gqa", *sizes), sizes, expected[sizes], starts)

    with ThreadPoolExecutor(AT_ONCE) as rounds:
        for done in rounds.map(run, range(ROUNDS)):
            print(done)
    assert set(children_of(os.getpid())) == children
    assert descriptors() <= open_before
    deadline = time.monotonic() + 10
    while num_threads() > threads:  # a thread that was joined may be there for another moment
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("number", range(4))
def test_rank_0_takes_the_others_with_it(number: int, ranks_engine: RanksEngine) -> None:
    """It is the user's program, and may be killed at any moment, also while it loads or ends."""
    draw = random.Random(number)
    program = (
        "import sys\nfrom precast import LLM, SamplingParams\nprint('ready', flush=True)\n"
        "while True:\n"
        f"    with LLM({str(ranks_engine('gqa', 2, 2))!r}, skip_tokenizer_init=True) as llm:\n"
        "        llm.generate([[5]] * 20, SamplingParams(max_tokens=100, ignore_eos=True), use_tqdm=False)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        time.sleep(draw.random() * 1.5)
        workers = children_of(parent.pid)
        parent.kill()
        parent.wait(timeout=20)
    deadline = time.monotonic() + 10
    while any(is_running(worker) for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.01)
