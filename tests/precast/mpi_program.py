"""What MPI jobs of the tests run in rank 0: `python mpi_program.py ENGINE TASK ...`. Prints JSON, a line a result.

Not a test itself.
"""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from precast import LLM, SamplingParams
from precast.runtime import RankFailedError

sys.path.append(str(Path(__file__).parents[2]))
from tests.processes import name_of, processes_with

REQUESTS = [[1 + (7 * i + j) % 300 for j in range(3 + 11 * i % 40)] for i in range(8)]
PARAMS = [SamplingParams(temperature=0.9, seed=i, max_tokens=12, logprobs=1, ignore_eos=True) for i in range(8)]
RESULT = "result: "  # in front of every one; MPI libraries write there too
ENDLESS = SamplingParams(temperature=0.0, max_tokens=None, ignore_eos=True)


def say(value: Any) -> None:
    print(RESULT + json.dumps(value), flush=True)


def sampled(llm: LLM) -> list[Any]:
    """Tokens and log probabilities, whose bits tell which order a sum had."""
    outputs = [output.outputs[0] for output in llm.generate(REQUESTS, PARAMS, use_tqdm=False)]
    return [
        [list(output.token_ids), [next(iter(each.values())).logprob for each in output.logprobs or []]]
        for output in outputs
    ]


def generate(engine: str) -> None:
    """Twice, with an engine each, one after the other."""
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("precast").addHandler(handler)
    logging.getLogger("precast").setLevel(logging.INFO)
    for max_num_tokens in (64, 100):
        with LLM(engine, skip_tokenizer_init=True, max_num_tokens=max_num_tokens) as llm:
            say(sampled(llm))
    say(sorted(record for record in records if record.startswith("rank ")))


def load(engine: str, *more: str) -> None:
    """What comes of loading each of these."""
    for path in (engine, *more):
        say(outcome_of_loading(path))


def outcome_of_loading(path: str) -> Any:
    try:
        with LLM(path, skip_tokenizer_init=True) as llm:
            return len(sampled(llm))
    except Exception as error:  # noqa: BLE001  whatever it is, the test says whether it is the right one
        return [type(error).__name__, str(error)]


def failure_of(future: Any) -> str:
    try:
        future.result(timeout=20)
    except RankFailedError as error:
        return str(error)
    return ""


def fail(engine: str, do_harm: Callable[[], None]) -> None:
    with LLM(engine, skip_tokenizer_init=True, rank_timeout_s=1) as llm:
        futures = [llm.generate_async([5 + i], ENDLESS, streaming=True) for i in range(300)]
        next(iter(futures[0]))
        do_harm()
        say(sorted({failure_of(future) for future in futures} - {""}))
    try:
        LLM(engine, skip_tokenizer_init=True)
    except RankFailedError as error:
        say(str(error))


def a_worker() -> int:
    """One of this job's; they are no children of this process."""
    mine = processes_with(f"PRECAST_TEST_JOB={os.environ['PRECAST_TEST_JOB']}")
    return min(pid for pid in mine if name_of(pid) == "precast-worker")


def pull_the_cable() -> None:
    subprocess.run(["ip", "link", "set", os.environ["PRECAST_TEST_LINK"], "down"], check=True)


def main() -> None:
    engine, task, *rest = sys.argv[1:]
    if task == "generate":
        generate(engine)
    elif task == "load":
        load(engine, *rest)
    elif task == "stop":
        fail(engine, lambda: os.kill(a_worker(), signal.SIGSTOP))
    elif task == "stop_idle":
        with LLM(engine, skip_tokenizer_init=True) as llm:
            say(len(sampled(llm)))
            os.kill(a_worker(), signal.SIGSTOP)
    elif task == "kill":
        fail(engine, lambda: os.kill(a_worker(), signal.SIGKILL))
    elif task == "cut":
        fail(engine, pull_the_cable)
        subprocess.run(["ip", "link", "set", os.environ["PRECAST_TEST_LINK"], "up"], check=True)
    elif task == "nothing":
        sys.exit(int(rest[0]))
    elif task == "leave":
        llm = LLM(engine, skip_tokenizer_init=True)
        say(len(sampled(llm)))
        sys.exit(int(rest[0]))  # and nobody has closed the engine


if __name__ == "__main__":
    main()
