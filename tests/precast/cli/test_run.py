"""precast run"""

import contextlib
import itertools
import json
import os
import pty
import re
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from precast import LLM, SamplingParams
from precast.cli import run
from precast.generation import GeneratedRequest
from tests.precast.cli.conftest import Result

Precast = Callable[..., Result]
GREEDY = ["--temperature", "0", "--max-tokens", "12", "--ignore-eos"]


@pytest.fixture(scope="module")
def expected(tiny_engine: Callable[..., Path]) -> str:
    with LLM(tiny_engine("gqa")) as llm:
        params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
        return llm.generate("print(", params, use_tqdm=False).outputs[0].text


def test_text_goes_to_stdout_and_the_summary_to_stderr(
    precast: Precast, tiny_engine: Callable[..., Path], expected: str
) -> None:
    result = precast("run", tiny_engine("gqa"), "print(", *GREEDY)
    assert result.status == 0
    assert result.out == expected + "\n"
    assert re.fullmatch(
        r"loaded in \d+\.\d\d s; \d+ tokens in, first token after \d+\.\d{3} s; "
        r"12 tokens out at \d+\.\d tokens/s, ended by length\n",
        result.err,
    )


def test_json(precast: Precast, tiny_engine: Callable[..., Path], expected: str) -> None:
    result = precast("run", tiny_engine("gqa"), "print(", *GREEDY, "--json")
    assert (result.status, result.err) == (0, "")
    printed = json.loads(result.out)
    assert printed["text"] == expected
    assert len(printed["token_ids"]) == 12
    assert (printed["prompt"], printed["finish_reason"], printed["stop_reason"]) == ("print(", "length", None)
    assert 0 < printed["first_token_s"] < 60
    assert printed["tokens_per_s"] > 0
    assert printed["load_s"] > 0


def test_a_seed_gives_the_same_text(precast: Precast, tiny_engine: Callable[..., Path]) -> None:
    sampled = ("run", tiny_engine("gqa"), "print(", "--max-tokens", "12", "--top-k", "9", "--top-p", "0.9", "--json")
    first = json.loads(precast(*sampled, "--seed", 5).out)
    assert first["seed"] == 5
    assert json.loads(precast(*sampled, "--seed", 5).out)["token_ids"] == first["token_ids"]


def test_stop_token_ids(precast: Precast, tiny_engine: Callable[..., Path]) -> None:
    whole = json.loads(precast("run", tiny_engine("gqa"), "print(", *GREEDY, "--json").out)["token_ids"]
    stop = whole[4]
    arguments = ("--stop-token-id", stop, "--stop-token-id", 319, "--json")
    cut = json.loads(precast("run", tiny_engine("gqa"), "print(", *GREEDY, *arguments).out)
    assert cut["token_ids"] == whole[: whole.index(stop) + 1]
    assert (cut["finish_reason"], cut["stop_reason"]) == ("stop", stop)


def test_a_checkpoint_is_built_first(precast: Precast, tiny_llama: Callable[..., Path], expected: str) -> None:
    result = precast("run", tiny_llama("gqa"), "print(", *GREEDY)
    assert (result.status, result.out) == (0, expected + "\n")


@pytest.mark.parametrize("stdin", ["print(", "print(\n"])
def test_the_prompt_may_come_from_stdin(
    precast_process: Precast, tiny_engine: Callable[..., Path], expected: str, stdin: str
) -> None:
    result = precast_process("run", tiny_engine("gqa"), *GREEDY, stdin=stdin)
    assert (result.status, result.out) == (0, expected + "\n")


@pytest.mark.parametrize(
    ("stdin", "message"),
    [
        (b"", "there is no PROMPT, and stdin is empty"),
        (b"\n", "there is no PROMPT, and stdin is empty"),
        (b"\xff", "stdin is not UTF-8: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
    ],
)
def test_no_prompt(precast_process: Precast, tmp_path: Path, stdin: bytes, message: str) -> None:
    assert precast_process("run", tmp_path, stdin=stdin) == Result(2, "", f"precast: error: {message}\n")


def test_stdin_that_is_closed(precast: Precast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert precast("run", tmp_path) == Result(2, "", "precast: error: there is no PROMPT, and stdin is closed\n")


def test_text_that_the_terminal_cannot_show(tiny_engine: Callable[..., Path]) -> None:
    """An output encoding without the characters must not end the command."""
    command = [sys.executable, "-m", "precast", "run", str(tiny_engine("gqa")), "Grüße", "--seed", "1", "--max-tokens"]
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*command, "200"], env=env, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()


def test_a_bad_prompt(precast: Precast, tiny_engine: Callable[..., Path]) -> None:
    result = precast("run", tiny_engine("gqa"), "x" * 2000)
    assert (result.status, result.out) == (1, "")
    assert re.fullmatch(r"precast: error: the prompt has \d+ tokens, and max_seq_len 256 must hold it .*\n", result.err)


# ---------------------------------------------------------------------------------------------- at a terminal


# Makes stdin the terminal whose keys send signals.
TAKE_TERMINAL = "import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)"


class Terminal:
    """`precast run ENGINE` at a terminal of its own."""

    def __init__(self, engine: Path) -> None:
        self._ours, theirs = pty.openpty()
        program = f"{TAKE_TERMINAL}; from precast.cli import main; sys.exit(main())"
        self._process = subprocess.Popen(
            [sys.executable, "-c", program, "run", str(engine), *GREEDY],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=os.environ | {"TERM": "dumb"},
            start_new_session=True,
        )
        os.close(theirs)
        self._read = b""

    def wait_for(self, text: str) -> str:
        """Everything up to and with `text`."""
        while text.encode() not in self._read:
            assert select.select([self._ours], [], [], 60)[0], f"no {text!r} after {self._read!r}"
            self._read += os.read(self._ours, 1024)
        before, _, self._read = self._read.partition(text.encode())
        return before.decode() + text

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def status(self) -> int:
        return self._process.wait(timeout=60)

    def interrupt(self) -> int:
        """Ctrl-C until it ends: a signal that comes just before Python sleeps in readline is seen at the next key."""
        while self._process.poll() is None:
            self.type("\x03")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=1)
        return self._process.returncode

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._ours)


def test_a_conversation(tiny_engine: Callable[..., Path], expected: str) -> None:
    terminal = Terminal(tiny_engine("gqa"))
    try:
        assert "Every line is a prompt of its own" in terminal.wait_for("> ")
        terminal.type("print(\n")
        assert expected.splitlines()[0] in terminal.wait_for("ended by length")
        terminal.wait_for("> ")
        terminal.type("x" * 2000 + "\n")
        assert "precast: error: the prompt has" in terminal.wait_for("max_seq_len 256")
        terminal.wait_for("> ")
        terminal.type("print(\n")
        terminal.wait_for("ended by length")
        terminal.wait_for("> ")
        terminal.type("\x04")  # Ctrl-D
        assert terminal.status() == 0
    finally:
        terminal.close()


def test_ctrl_c_during_an_answer_ends_only_that(
    precast: Precast, tiny_engine: Callable[..., Path], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = iter(["print(", "print("])
    wait, num_waits = GeneratedRequest.wait, itertools.count()

    def interrupt_once(request: GeneratedRequest, version: int, timeout_s: float | None = None) -> bool:
        if next(num_waits) == 0:
            raise KeyboardInterrupt
        return wait(request, version, timeout_s)

    def read_line(_: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr(run, "_at_terminal", lambda: True)
    monkeypatch.setattr("builtins.input", read_line)
    monkeypatch.setattr(GeneratedRequest, "wait", interrupt_once)
    result = precast("run", tiny_engine("gqa"), *GREEDY)
    assert (result.status, result.out) == (0, expected + "\n")
    assert "\n(stopped)\n" in result.err


def test_ctrl_c_at_the_prompt_ends_it(tiny_engine: Callable[..., Path]) -> None:
    terminal = Terminal(tiny_engine("gqa"))
    try:
        terminal.wait_for("> ")
        assert terminal.interrupt() == 130
    finally:
        terminal.close()
