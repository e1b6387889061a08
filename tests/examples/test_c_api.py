"""examples/c_api: compiles without a warning, keeps four requests in flight, and gives the engine's tokens."""

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from precast import LLM, SamplingParams
from precast.runtime.library import library_path, onnxruntime_path

REPOSITORY = Path(__file__).resolve().parents[2]
MAIN = REPOSITORY / "examples" / "c_api" / "main.c"
INCLUDE = REPOSITORY / "runtime" / "native" / "include"
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror"]
PROMPTS = ["1,2,3,4", "10,20,30", "7,7,7,7,7,7,7,7", "42", "100,90,80,70,60", "5,6"]  # the program's own

Program = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """The example, compiled with sanitizers: it must release everything that it owns."""
    executable = tmp_path_factory.mktemp("c_api") / "c_api"
    sanitizers = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    files = [str(MAIN), str(library_path()), "-o", str(executable)]
    subprocess.run(["cc", "-std=c99", *WARNINGS, *sanitizers, f"-I{INCLUDE}", *files], check=True)
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(library_path().parent),
        "PRECAST_ONNXRUNTIME": str(onnxruntime_path()),
    }

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [str(executable), *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)

    return run


def tokens_of(output: str, request: int) -> list[int]:
    return [int(token) for token in re.findall(rf"^request {request}: token (\d+)$", output, re.MULTILINE)]


def test_it_gives_the_tokens_that_python_gives(program: Program, tiny_engine: Callable[..., Path]) -> None:
    done = program(tiny_engine("gqa"))
    assert (done.returncode, done.stderr) == (0, "")
    with LLM(tiny_engine("gqa")) as llm:
        prompts = [[int(token) for token in prompt.split(",")] for prompt in PROMPTS]
        outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=16), use_tqdm=False)
    expected = [output.outputs[0].token_ids for output in outputs]
    assert [tokens_of(done.stdout, request) for request in range(len(PROMPTS))] == expected
    assert re.search(rf"^6 requests, 23 tokens in, {sum(map(len, expected))} tokens out, ", done.stdout, re.MULTILINE)


def test_requests_run_side_by_side(program: Program, tiny_engine: Callable[..., Path]) -> None:
    lines = program(tiny_engine("gqa")).stdout.splitlines()[1:-1]
    first, last = ({}, {})  # type: dict[str, int], dict[str, int]
    for position, line in enumerate(lines):
        request = line.partition(":")[0]
        first.setdefault(request, position)
        last[request] = position
    assert max(first[f"request {i}"] for i in range(4)) < min(last[f"request {i}"] for i in range(4))
    assert first["request 4"] > min(last.values())  # never more than four


def test_own_prompts(program: Program, tiny_engine: Callable[..., Path]) -> None:
    done = program(tiny_engine("gqa"), "5,260,99")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(tokens_of(done.stdout, 0)) == 16


@pytest.mark.parametrize("prompt", ["", "1,", ",1", "1,,2", "one", "1 2", "-1", "99999999999"])
def test_what_is_no_prompt(program: Program, tiny_engine: Callable[..., Path], prompt: str) -> None:
    done = program(tiny_engine("gqa"), "5", prompt)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f'"{prompt}" is no list of token ids such as 1,15,7\n'


def test_a_token_outside_the_vocabulary(program: Program, tiny_engine: Callable[..., Path]) -> None:
    done = program(tiny_engine("gqa"), "5", "320")
    assert done.returncode == 1
    assert "submitting: request 1: prompt_token_ids[0] is 320, outside the vocabulary of 320 (error 1)" in done.stderr


def test_an_engine_that_is_not_there(program: Program, tmp_path: Path) -> None:
    done = program(tmp_path / "engine")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"loading: {tmp_path}/engine: no such directory (error 2)\n"


def test_no_arguments(program: Program) -> None:
    done = program()
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")


def test_the_header_is_valid_cpp20(tmp_path: Path) -> None:
    source = tmp_path / "header.cpp"
    source.write_text("#include <precast.h>\n#include <precast.h>\nstatic_assert(PRECAST_VERSION >= 0);\n")
    subprocess.run(["c++", "-std=c++20", *WARNINGS, f"-I{INCLUDE}", "-fsyntax-only", source], check=True)


def test_the_header_needs_no_other_and_is_valid_c99(tmp_path: Path) -> None:
    source = tmp_path / "header.c"
    source.write_text("#include <precast.h>\nint main(void) { return 0; }\n")
    subprocess.run(["cc", "-std=c99", *WARNINGS, f"-I{INCLUDE}", "-fsyntax-only", source], check=True)
