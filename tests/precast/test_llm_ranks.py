"""LLM on engines of several ranks: the same tokens, the same promises, and what happens when a rank fails."""

import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from precast import LLM, SamplingParams
from precast.runtime import EngineLoadError, RankFailedError
from precast.runtime.library import library_path
from precast.verifying import verify_engine
from tests.processes import children_of, is_running
from tests.tiny_llama import GREEDY_STEPS, PROMPTS, VARIANTS, reference_greedy

Tiny = Callable[[str], Path]
SIZES = [(2, 1), (4, 1), (1, 2), (2, 2)]
GREEDY = SamplingParams(temperature=0.0, max_tokens=GREEDY_STEPS, ignore_eos=True)
ENDLESS = SamplingParams(temperature=0.0, max_tokens=None, ignore_eos=True)


def worker_program() -> Path:
    return library_path().parents[1] / "bin" / "precast-worker"


def prompts() -> list[list[int]]:
    return [list(prompt) for prompt in PROMPTS]


def tokens(outputs: Any) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in outputs]


def wait_until(holds: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = set(children_of(os.getpid()))
    yield
    assert set(children_of(os.getpid())) <= before


class TestTokens:
    @pytest.mark.parametrize(("tensor_size", "pipeline_size"), SIZES)
    @pytest.mark.parametrize(
        "variant", ["gqa", "mqa", "tied", "mlp_bias", "odd_vocab", "mistral", "qwen2_window", "qwen3"]
    )
    def test_greedy_tokens_are_hugging_faces(
        self,
        variant: str,
        tensor_size: int,
        pipeline_size: int,
        tiny_llama: Tiny,
        ranks_engine: Callable[[str, int, int], Path],
    ) -> None:
        assert VARIANTS[variant].dtype == "float32"
        expected = [reference_greedy(tiny_llama(variant), prompt, GREEDY_STEPS)[0] for prompt in PROMPTS]
        with LLM(ranks_engine(variant, tensor_size, pipeline_size), skip_tokenizer_init=True) as llm:
            outputs = llm.generate(prompts(), GREEDY, use_tqdm=False)
        assert tokens(outputs) == [list(each) for each in expected]

    @pytest.mark.parametrize(
        ("variant", "tensor_size", "pipeline_size"),
        [("gqa", *sizes) for sizes in SIZES]
        + [(variant, 2, 2) for variant in ("mqa", "tied", "mlp_bias", "odd_vocab", "mistral", "qwen2_window", "qwen3")],
    )
    def test_logits(
        self,
        variant: str,
        tensor_size: int,
        pipeline_size: int,
        tiny_llama: Tiny,
        ranks_engine: Callable[[str, int, int], Path],
    ) -> None:
        report = verify_engine(ranks_engine(variant, tensor_size, pipeline_size), tiny_llama(variant))
        assert report.tolerance == 1e-4
        assert report.passed, report

    @pytest.mark.parametrize(("tensor_size", "pipeline_size"), [(2, 1), (1, 2), (2, 2)])
    def test_a_crowd_changes_nothing_and_neither_does_another_run(
        self, tensor_size: int, pipeline_size: int, ranks_engine: Callable[[str, int, int], Path]
    ) -> None:
        """Bit for bit, so sampled tokens and their log probabilities are compared; bfloat16 rounds most."""
        engine = ranks_engine("bfloat16", tensor_size, pipeline_size)
        requests = [[1 + (7 * i + j) % 300 for j in range(3 + 11 * i % 40)] for i in range(24)]
        params = [
            SamplingParams(temperature=0.9, seed=i, max_tokens=12, logprobs=2, ignore_eos=True) for i in range(24)
        ]

        def read(output: Any) -> Any:
            completion = output.outputs[0]
            return completion.token_ids, completion.logprobs

        with LLM(engine, skip_tokenizer_init=True, max_num_tokens=64) as llm:
            pairs = zip(requests, params, strict=True)
            alone = [read(llm.generate(request, one, use_tqdm=False)) for request, one in pairs]
        with LLM(engine, skip_tokenizer_init=True, max_num_tokens=100) as llm:
            crowd = [read(output) for output in llm.generate(requests, params, use_tqdm=False)]
            again = [read(output) for output in llm.generate(requests, params, use_tqdm=False)]
        assert crowd == alone
        assert again == alone

    def test_stages_have_several_steps_in_flight(self, ranks_engine: Callable[[str, int, int], Path]) -> None:
        """Half of the requests that generate are in each step, so that two stages work at once."""
        with LLM(ranks_engine("gqa", 1, 2), skip_tokenizer_init=True) as llm:
            llm.generate([[5]] * 8, GREEDY, use_tqdm=False)
            steps = [stats["inflightBatchingStats"]["numScheduledRequests"] for stats in llm.get_stats(2.0)]
        assert steps[0] == 8  # prompts
        assert set(steps[2:-2]) == {4}


class TestLoading:
    def test_from_a_checkpoint_without_a_main_guard(self, tiny_llama: Tiny, tmp_path: Path) -> None:
        program = (
            "from precast import LLM, SamplingParams\n"
            f"llm = LLM({str(tiny_llama('gqa'))!r}, tensor_parallel_size=2)\n"
            "output = llm.generate('x', SamplingParams(max_tokens=2, ignore_eos=True))\n"
            "print(llm.info['tensor_parallel_size'], output.outputs[0].length)\n"
            "llm.save('engine')\n"
        )
        run = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False
        )
        assert (run.returncode, run.stdout) == (0, "2 2\n"), run.stderr
        with LLM(tmp_path / "engine", tensor_parallel_size=2) as llm:
            assert llm.info["tensor_parallel_size"] == 2

    def test_sizes_of_an_engine_are_its_own(self, ranks_engine: Callable[[str, int, int], Path]) -> None:
        engine = ranks_engine("gqa", 2, 1)
        with pytest.raises(ValueError, match="was built for tensor_parallel_size 2, and 4 was asked for: leave it out"):
            LLM(engine, tensor_parallel_size=4)
        with pytest.raises(ValueError, match="was built for pipeline_parallel_size 1, and 2 was asked for"):
            LLM(engine, pipeline_parallel_size=2)

    @pytest.mark.parametrize("num_blocks", [13, 18, 19, 24])
    def test_the_longest_sequence_has_room_where_windows_and_stages_meet(
        self, num_blocks: int, ranks_engine: Callable[[str, int, int], Path]
    ) -> None:
        """Windowed layers keep the tokens of as many steps as there are stages."""
        limits: dict[str, Any] = {
            "max_num_tokens": 8,
            "max_batch_size": 8,
            "kv_cache_bytes": num_blocks * 8192,
        }
        with LLM(ranks_engine("qwen2_window", 1, 2), skip_tokenizer_init=True, **limits) as llm:
            assert llm.info["num_blocks"] == num_blocks
            longest = llm.info["max_seq_len"]
            assert 100 < longest <= 256
            params = SamplingParams(temperature=0.0, max_tokens=longest - 90, ignore_eos=True)
            output = llm.generate([5] * 90, params, use_tqdm=False)
        assert output.outputs[0].length == longest - 90

    def test_a_worker_program_that_is_not_there(
        self, ranks_engine: Callable[[str, int, int], Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PRECAST_WORKER", "/nowhere/precast-worker")
        with pytest.raises(EngineLoadError, match='cannot be run at "/nowhere/precast-worker": No such file'):
            LLM(ranks_engine("gqa", 2, 1), skip_tokenizer_init=True)

    def test_a_worker_program_that_is_another_one(
        self, ranks_engine: Callable[[str, int, int], Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PRECAST_WORKER", "/bin/false")
        with pytest.raises(RankFailedError, match=r"rank 1 \(process \d+\) ended with status 1"):
            LLM(ranks_engine("gqa", 2, 1), skip_tokenizer_init=True)

    def test_a_worker_program_that_does_nothing(
        self, ranks_engine: Callable[[str, int, int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        program = tmp_path / "precast-worker"
        program.write_text("#!/bin/sh\nexec sleep 1000\n")
        program.chmod(0o755)
        monkeypatch.setenv("PRECAST_WORKER", str(program))
        message = "rank 1 has made no progress for 1 s, while rank 0 waited for it to load"
        with pytest.raises(RankFailedError, match=message):
            LLM(ranks_engine("gqa", 2, 1), skip_tokenizer_init=True, rank_timeout_s=1)

    def test_a_rank_that_cannot_load_says_why(
        self, ranks_engine: Callable[[str, int, int], Path], tmp_path: Path
    ) -> None:
        import shutil

        engine = Path(shutil.copytree(ranks_engine("gqa", 2, 1), tmp_path / "engine"))
        graph = engine / "rank1" / "model.onnx"
        graph.write_bytes(bytes(graph.stat().st_size))
        with pytest.raises(Exception, match=r"rank 1: .*rank1/model.onnx"):
            LLM(engine, skip_tokenizer_init=True)

    def test_what_the_ranks_say_is_in_the_log(
        self,
        ranks_engine: Callable[[str, int, int], Path],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """And nothing on the standard output and error of the program."""
        program = tmp_path / "precast-worker"
        program.write_text(f'#!/bin/sh\necho "some library is unhappy" >&2\nexec {worker_program()} "$@"\n')
        program.chmod(0o755)
        monkeypatch.setenv("PRECAST_WORKER", str(program))
        caplog.set_level(logging.INFO, logger="precast")
        with LLM(ranks_engine("gqa", 2, 1), skip_tokenizer_init=True) as llm:
            llm.generate([5], GREEDY, use_tqdm=False)
        said = [(record.levelno, record.message) for record in caplog.records if "rank 1" in record.message]
        assert [level for level, _ in said] == [logging.WARNING, logging.INFO]
        assert re.fullmatch(r"rank 1 \(process \d+\): some library is unhappy", said[0][1])
        assert re.fullmatch(
            r"rank 1 \(process \d+\): loaded \d+ bytes of weights; \d+ threads, kernels \w+", said[1][1]
        )

    def test_where_nobody_reads_a_log_ranks_write_nothing(self, ranks_engine: Callable[[str, int, int], Path]) -> None:
        program = (
            "from precast.runtime import Engine, EngineOptions\n"
            f"Engine({str(ranks_engine('gqa', 2, 1))!r}, EngineOptions()).shutdown()\n"
        )
        run = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False)
        assert (run.returncode, run.stdout, run.stderr) == (0, b"", b"")

    def test_the_program_by_hand(self) -> None:
        run = subprocess.run([worker_program()], capture_output=True, text=True, timeout=20, check=False)
        assert (run.returncode, run.stdout) == (2, "")
        assert run.stderr == "precast-worker: precast-worker is started by precast, not by hand\n"


class TestFailure:
    @pytest.mark.parametrize(("tensor_size", "pipeline_size"), [(2, 1), (4, 1), (1, 2), (2, 2)])
    def test_a_rank_that_is_killed_ends_every_request_within_a_second(
        self, tensor_size: int, pipeline_size: int, ranks_engine: Callable[[str, int, int], Path]
    ) -> None:
        before = set(children_of(os.getpid()))
        with LLM(ranks_engine("gqa", tensor_size, pipeline_size), skip_tokenizer_init=True, max_batch_size=4) as llm:
            workers = sorted(set(children_of(os.getpid())) - before)
            assert len(workers) == tensor_size * pipeline_size - 1
            for turn, victim in enumerate(workers[-1:]):
                futures = [llm.generate_async([5 + i], ENDLESS, streaming=True) for i in range(8)]
                next(iter(futures[0]))  # they run
                os.kill(victim, signal.SIGKILL)
                killed = time.monotonic()
                for future in futures:
                    with pytest.raises(RankFailedError, match=rf"rank \d \(process {victim}\) was killed by SIGKILL"):
                        future.result(timeout=10)
                assert time.monotonic() - killed < 1, turn
            with pytest.raises(RankFailedError, match="was killed by SIGKILL"):
                llm.generate([5], GREEDY, use_tqdm=False)

    def test_a_rank_that_hangs_is_named_and_the_others_wait_no_longer_than_told(
        self, ranks_engine: Callable[[str, int, int], Path]
    ) -> None:
        before = set(children_of(os.getpid()))
        with LLM(ranks_engine("gqa", 2, 1), skip_tokenizer_init=True, rank_timeout_s=1) as llm:
            (worker,) = set(children_of(os.getpid())) - before
            future = llm.generate_async([5], ENDLESS, streaming=True)
            next(iter(future))
            os.kill(worker, signal.SIGSTOP)
            stopped = time.monotonic()
            with pytest.raises(
                RankFailedError, match="rank 1 has made no progress for 1 s, while rank 0 waited for it"
            ):
                future.result(timeout=20)
            assert 0.9 < time.monotonic() - stopped < 4
        assert time.monotonic() - stopped < 8  # a process that does not end is killed

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
    def test_workers_end_with_their_parent(
        self, number: signal.Signals, ranks_engine: Callable[[str, int, int], Path]
    ) -> None:
        program = (
            "import time\nfrom precast import LLM, SamplingParams\n"
            f"llm = LLM({str(ranks_engine('gqa', 2, 2))!r}, skip_tokenizer_init=True)\n"
            "future = llm.generate_async([5], SamplingParams(max_tokens=None, ignore_eos=True))\n"
            "print('ready', flush=True)\ntime.sleep(60)\n"
        )
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
            assert parent.stdout is not None
            assert parent.stdout.readline() == "ready\n"
            workers = children_of(parent.pid)
            assert len(workers) == 3
            parent.send_signal(number)
            parent.wait(timeout=20)
        wait_until(lambda: not any(is_running(worker) for worker in workers), 5)

    def test_a_ctrl_c_is_for_the_program_and_not_for_its_ranks(
        self, ranks_engine: Callable[[str, int, int], Path]
    ) -> None:
        program = (
            "from precast import LLM, SamplingParams\n"
            f"llm = LLM({str(ranks_engine('gqa', 2, 1))!r}, skip_tokenizer_init=True)\n"
            "print('ready', flush=True)\n"
            "try:\n    llm.generate([5], SamplingParams(max_tokens=None, ignore_eos=True), use_tqdm=False)\n"
            "    llm.generate([5] * 200, SamplingParams(max_tokens=None, ignore_eos=True), use_tqdm=False)\n"
            "except KeyboardInterrupt:\n    pass\n"
            "print(llm.generate([5], SamplingParams(max_tokens=2), use_tqdm=False).outputs[0].length)\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True
        ) as parent:
            assert parent.stdout is not None
            assert parent.stdout.readline() == "ready\n"
            threading.Event().wait(0.05)
            os.killpg(parent.pid, signal.SIGINT)
            assert parent.stdout.readline() in ("2\n", "")
            assert parent.wait(timeout=20) in (0, -signal.SIGINT)
