"""The command line as a whole: help, usage, errors on one line, exit statuses."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import precast as package
from precast.cli import inspect
from tests.precast.cli.conftest import Result

Precast = Callable[..., Result]

COMMANDS = ("build", "run", "inspect", "verify")


def test_help_names_every_command(precast: Precast) -> None:
    result = precast("--help")
    assert (result.status, result.err) == (0, "")
    assert [name for name in COMMANDS if f"    {name} " in result.out] == list(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_and_the_options_of_all(precast: Precast, command: str) -> None:
    result = precast(command, "--help")
    assert (result.status, result.err) == (0, "")
    assert "--json" in result.out
    assert "--debug" in result.out


def test_version(precast: Precast) -> None:
    assert precast("--version") == Result(0, f"precast {package.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND (see precast --help)"),
        (["fly"], "argument COMMAND: invalid choice: 'fly' (choose from "),
        (["build"], "the following arguments are required: MODEL, --output (see precast build --help)"),
        (["build", "m", "--output", "e", "--dtype", "int3"], "argument --dtype: invalid choice: 'int3' (choose from "),
        (["run", "e", "--max-tokens", "many"], "argument --max-tokens: invalid int value: 'many' (see precast run"),
        (["run", "e", "p", "--max-tok", "3"], "unrecognized arguments: --max-tok 3 (see precast --help)"),
        (["run", "e", "p", "--max-tokens", "0"], "max_tokens must be in [1, 2147483647], got 0"),
        (["run", "e", "p", "--top-p", "7"], "top_p must be in (0, 1], got 7.0"),
        (["verify", "e", "--prompts", "x"], "--prompts, --revision and --reference-backend need --reference"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(precast: Precast, arguments: list[str], message: str) -> None:
    result = precast(*arguments)
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith(f"precast: error: {message}")
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("command", ["inspect", "verify", "run"])
def test_an_error_is_one_line_and_status_1(precast: Precast, tmp_path: Path, command: str) -> None:
    (tmp_path / "engine.json").write_text("{")
    result = precast(command, tmp_path, *(["prompt"] if command == "run" else []))
    assert (result.status, result.out) == (1, "")
    assert result.err.startswith(f"precast: error: {tmp_path}/engine.json:1:2: ")
    assert result.err.count("\n") == 1


def test_debug_shows_the_traceback(precast_process: Precast, tmp_path: Path) -> None:
    result = precast_process("inspect", tmp_path, "--debug")
    assert result.status == 1
    assert result.err.startswith("Traceback (most recent call last):")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (KeyError("weights"), "KeyError: 'weights' (--debug shows where)"),
        (RuntimeError(), "RuntimeError:  (--debug shows where)"),
        (ValueError("two\nlines"), "two lines"),
        (PermissionError(13, "Permission denied", "/root/x"), "/root/x: Permission denied"),
    ],
)
def test_an_error_that_is_not_made_to_be_read_is_named(
    precast: Precast, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def fail(_: object) -> int:
        raise error

    monkeypatch.setattr(inspect, "run", fail)
    assert precast("inspect", "engine") == Result(1, "", f"precast: error: {message}\n")


def test_python_m_precast(precast_process: Precast) -> None:
    assert precast_process("--version") == Result(0, f"precast {package.__version__}\n", "")


def test_a_closed_pipe_is_no_traceback(tiny_engine: Callable[..., Path]) -> None:
    """As in `precast inspect ENGINE | head -1`."""
    command = [sys.executable, "-u", "-m", "precast", "inspect", str(tiny_engine("gqa")), "--tensors"]
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        done = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, timeout=60, check=False)
    finally:
        os.close(write_end)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_a_pipe_that_closes_while_the_rest_is_buffered(tiny_engine: Callable[..., Path]) -> None:
    command = [sys.executable, "-m", "precast", "inspect", str(tiny_engine("gqa")), "--json"]
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        done = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, timeout=60, check=False)
    finally:
        os.close(write_end)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


INTERRUPTED_AT_THE_FIRST_TOKEN = """
import os, signal, sys
from precast.completion import Completion
from precast.cli import main

accept_token = Completion.accept_token

def accept_and_interrupt(self, event):
    accept_token(self, event)
    os.kill(os.getpid(), signal.SIGINT)

Completion.accept_token = accept_and_interrupt
sys.exit(main(["run", sys.argv[1], "print(", "--temperature", "0"]))
"""


def test_ctrl_c_is_quiet(tiny_engine: Callable[..., Path]) -> None:
    command = [sys.executable, "-c", INTERRUPTED_AT_THE_FIRST_TOKEN, str(tiny_engine("gqa"))]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (128 + signal.SIGINT, b"")
